"""One experiment as one frozen, validated value, from a YAML file and overrides.

Every key is documented here and nowhere else; the README's table is printed by `python -m maml_l2l.config`.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from maml_l2l.errors import UserError

Rate = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Data(_Section):
    name: Literal["omniglot", "glyphs"] = Field(
        "omniglot", description="`omniglot` (downloaded when absent) or `glyphs` (embedded, drawn on first use)"
    )
    root: str = Field("data", description="folder that holds the data set, or will")
    source: str | None = Field(
        None, description="omniglot: another base address, or a folder that holds the two archives"
    )
    verify: bool = Field(True, description="omniglot: refuse archives whose MD5 sum is not the original's")
    split: Literal["finn", "alphabets"] = Field(
        "finn",
        description="`finn`: 1,100 / 100 / 423 of the 1,623 characters; `alphabets`: unseen alphabets for testing",
    )
    alphabets: int = Field(50, ge=3, le=50, description="glyphs: number of alphabets; 50 hold 1,623 characters")
    rotate: bool = Field(True, description="rotate each class of a task by a random multiple of 90 degrees")


class Task(_Section):
    ways: int = Field(5, ge=2, description="classes a task")
    shots: int = Field(1, ge=1, description="support images a class")
    queries: int = Field(1, ge=1, description="query images a class")


class Model(_Section):
    name: Literal["conv4"] = Field("conv4", description="the backbone: four convolution blocks and a linear head")
    filters: int = Field(64, ge=1, description="filters of each convolution")
    downsample: Literal["stride", "max_pool"] = Field(
        "stride", description="halve the image in each block by a stride of 2, or by 2x2 max-pooling"
    )


class Algorithm(_Section):
    order: Literal["second", "first"] = Field(
        "second", description="`second`: differentiate through the inner loop; `first`: first-order MAML"
    )
    engine: Literal["vectorized", "loop"] = Field(
        "vectorized", description="`vectorized`: many tasks at once; `loop`: learn2learn's, one task after another"
    )
    task_chunk: int | None = Field(
        None, ge=1, description="vectorized: tasks worked on at once, which bounds the memory; unset: by their size"
    )
    inner_lr: Rate = Field(0.4, description="step size of the inner loop, on the mean cross-entropy")
    inner_steps: int = Field(1, ge=1, description="gradient steps of the inner loop in training")
    normalisation: Literal["batch", "support"] = Field(
        "batch", description="normalise queries by their own `batch`, or inductively by the task's `support` images"
    )


class Train(_Section):
    iterations: int = Field(60_000, ge=1, description="meta-iterations")
    meta_batch: int = Field(32, ge=1, description="tasks a meta-iteration")
    meta_lr: Rate = Field(1e-3, description="learning rate of the outer loop's Adam")
    schedule: Literal["constant", "cosine"] = Field(
        "constant", description="outer learning rate: `constant`, or `cosine` decay to zero over all meta-iterations"
    )
    validate_every: int = Field(500, ge=1, description="meta-iterations between validations")
    validate_tasks: int = Field(200, ge=2, description="tasks of the fixed validation set")
    checkpoint_every: int = Field(500, ge=1, description="meta-iterations between writings of `last.pth`")


class Eval(_Section):
    tasks: int = Field(1000, ge=2, description="tasks of an evaluation")
    steps: int = Field(10, ge=0, description="accuracy is reported after 0, 1, ..., `steps` inner steps")


class Run(_Section):
    seed: int = Field(0, ge=0, description="seed of the initial weights and of the task streams")
    device: str = Field(
        "auto",
        pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$",
        description="`auto` (a GPU where there is one), `cpu`, `cuda`, `cuda:1`, ...",
    )
    threads: int | None = Field(None, ge=1, description="CPU threads of PyTorch; unset: PyTorch's own choice")
    compile: bool | Literal["auto"] = Field(
        "auto", description="compile the vectorized engine: true, false, or `auto`: on CPUs from 1,000 meta-iterations"
    )
    precision: Literal["float32", "bfloat16"] = Field(
        "float32", description="vectorized: round what convolutions multiply to `bfloat16`, which some CPUs do faster"
    )
    tensorboard: bool = Field(False, description="write TensorBoard event files (`pip install tensorboard`)")


class Experiment(_Section):
    """Everything that defines a run; unknown keys are refused."""

    data: Data = Data()
    task: Task = Task()
    model: Model = Model()
    algorithm: Algorithm = Algorithm()
    train: Train = Train()
    eval: Eval = Eval()
    run: Run = Run()

    @model_validator(mode="before")
    @classmethod
    def _empty_section_means_defaults(cls, values: Any) -> Any:
        if isinstance(values, dict):
            return {key: {} if value is None else value for key, value in values.items()}
        return values

    @model_validator(mode="after")
    def _the_loop_is_learn2learn_s_own(self) -> Experiment:
        if self.algorithm.engine == "loop":
            for key, default in (("compile", "auto"), ("precision", "float32")):
                if getattr(self.run, key) not in (default, False):
                    raise ValueError(f"`run.{key}` is for `algorithm.engine: vectorized`, found engine `loop`")
        return self


def load_experiment(path: str | Path | None, overrides: Iterable[str] = ()) -> Experiment:
    """Read the YAML file `path` (None: the documented defaults), then apply `key.path=value` overrides in their order.

    Raises `UserError` naming key, value and file where one is unknown, of the wrong type or out of range.
    """
    values = _read_yaml(Path(path)) if path is not None else {}
    for override in overrides:
        _apply_override(values, override)
    return parse_experiment(values, origin=str(path) if path is not None else "the command line")


def parse_experiment(values: Any, origin: str) -> Experiment:
    """Validate nested dictionaries, e.g. a checkpoint's; `origin` is named in the `UserError` of what does not fit."""
    try:
        return Experiment.model_validate(values)
    except ValidationError as error:
        problems = "; ".join(_describe(problem) for problem in error.errors())
        raise UserError(f"{origin}: {problems}.") from None


class _YamlLoader(yaml.SafeLoader):
    """PyYAML's safe loader, with YAML 1.2's floats: YAML 1.1 reads `1e-3` as a string."""


_YamlLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def with_overrides(experiment: Experiment, overrides: dict[str, Any], origin: str) -> Experiment:
    """`experiment` with `{"section.key": value}` applied and validated; a value of None leaves the key as it is."""
    values = experiment.model_dump()
    for key, value in overrides.items():
        if value is not None:
            section, _, name = key.partition(".")
            values[section][name] = value
    return parse_experiment(values, origin)


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), _YamlLoader)
    except OSError as error:
        raise UserError(f"cannot read the config {path}: {error.strerror}. Give the path of a YAML file.") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid YAML: {' '.join(str(error).split())}.") from None
    if not isinstance(values, dict):
        raise UserError(f"{path}: expected sections such as `task:` and `train:`, found {type(values).__name__}.")
    return values


def _apply_override(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    section, dot, name = key.strip().partition(".")
    if not (equals and dot and section and name):
        raise UserError(f"--set {override}: expected section.key=value, for example train.iterations=2000.")
    try:
        value = yaml.load(text, _YamlLoader)
    except yaml.YAMLError:
        raise UserError(f"--set {override}: {text!r} is not a YAML value; put quotes around it.") from None
    if values.get(section) is None:
        values[section] = {}
    if not isinstance(values[section], dict):
        raise UserError(f"--set {override}: {section} holds {values[section]!r}, expected a section of keys.")
    values[section][name] = value


def _describe(problem: Any) -> str:
    location = [str(part) for part in problem["loc"]]
    key = ".".join(location)
    if problem["type"] == "extra_forbidden":
        return f"unknown key `{key}`{_nearest_key(location)}"
    if problem["type"] == "value_error":
        return problem["msg"].removeprefix("Value error, ")
    expected = problem["msg"].replace("Input should", "should").rstrip(".")
    if problem["type"] in ("model_type", "dict_type", "model_attributes_type"):
        expected = "should be a section of keys"
    return f"`{key or 'config'}` {expected}, found {problem['input']!r}"


def _nearest_key(location: list[str]) -> str:
    """The known key that the user most likely meant: the spelling first, then the same name in another section."""
    known = {f"{section}.{name}": name for section, name, _ in documented_keys()}
    sections = list(Experiment.model_fields)
    by_name = [key for key, name in known.items() if name == location[-1]]
    if len(location) == 1:
        near = difflib.get_close_matches(location[0], sections, n=1, cutoff=0.7) or by_name
    else:
        near = difflib.get_close_matches(".".join(location), known, n=1, cutoff=0.75) or by_name
        near = near or difflib.get_close_matches(".".join(location), known, n=1)
    return f" (did you mean `{near[0]}`?)" if near else f" (known sections: {', '.join(sections)})"


def documented_keys() -> Iterable[tuple[str, str, Any]]:
    """(section, key, pydantic field) of every config key, in the order of the file."""
    for section, field in Experiment.model_fields.items():
        for name, key_field in field.annotation.model_fields.items():
            yield section, name, key_field


def keys_as_markdown() -> str:
    """The README's table of config keys."""
    rows = ["| key | default | meaning |", "|---|---|---|"]
    for section, name, field in documented_keys():
        default = "unset" if field.default is None else yaml.safe_dump(field.default).split("\n")[0]
        rows.append(f"| `{section}.{name}` | {default} | {field.description} |")
    return "\n".join(rows)


if __name__ == "__main__":
    print(keys_as_markdown())
