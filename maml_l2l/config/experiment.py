"""One experiment as one frozen, validated value, from a YAML file and overrides.

Every key is documented here and nowhere else; the README's table is printed by `python -m maml_l2l.config`.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from maml_l2l.config.problems import checked_path, describe_problems
from maml_l2l.config.yaml_values import apply_override, read_yaml
from maml_l2l.system.errors import UserError

Rate = Annotated[float, Field(gt=0, allow_inf_nan=False)]
PathText = Annotated[str, AfterValidator(checked_path)]

MAX_WAYS, MAX_FILTERS = 10_000, 1024  # so that no number in a file makes a network that no machine holds
Side = Annotated[int, Field(ge=1, le=1024)]  # these, so that none asks for work without end
Tasks = Annotated[int, Field(ge=1, le=1_000_000)]
Count = Annotated[int, Field(ge=1, lt=2**63)]

# What is unset: for omniglot and glyphs, which are drawings, and for a folder of pictures.
_DRAWINGS = {"image_size": 28, "channels": 1, "rotate": True}
_PICTURES = {"image_size": 84, "channels": 3, "rotate": False}


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Data(_Section):
    name: Literal["omniglot", "glyphs", "folder"] = Field(
        "omniglot",
        description="`omniglot` (downloaded when absent), `glyphs` (embedded, drawn on first use) or `folder` "
        "(pictures of your own, in a folder for each class)",
    )
    root: PathText = Field("data", description="folder that holds the data set, or will")
    source: PathText | None = Field(None, description="omniglot: another base address, or a folder of both archives")
    verify: bool = Field(True, description="omniglot: refuse archives whose MD5 sum is not the original's")
    split: Literal["finn", "alphabets"] = Field(
        "finn",
        description="drawings: `finn`: 1,100 / 100 / 423 of 1,623 characters; `alphabets`: unseen alphabets test",
    )
    alphabets: int = Field(50, ge=3, le=50, description="glyphs: number of alphabets; 50 hold 1,623 characters")
    rotate: bool | None = Field(
        None, description="rotate each class of a task by a random multiple of 90 degrees; unset: except for folder"
    )
    image_size: Side | None = Field(
        None, description="folder: side of the square that pictures become, in pixels; unset: 84 (drawings: 28)"
    )
    channels: Literal[1, 3] | None = Field(None, description="folder: 1 (grey) or 3 (colour); unset: 3 (drawings: 1)")
    fit: Literal["crop", "pad"] = Field(
        "crop", description="folder: make pictures square by a centre crop, or by white margins"
    )
    invert: bool = Field(False, description="folder: turn dark ink on light paper into ink = 1, paper = 0")
    val_fraction: float = Field(0.2, gt=0, lt=1, description="folder: share of the classes that validates")
    test_fraction: float = Field(0.2, ge=0, lt=1, description="folder: share of the classes that tests")
    split_seed: int = Field(0, ge=-(2**63), lt=2**63, description="folder: seed of the class split")
    max_memory: Count = Field(4096, description="folder: MiB of images held in memory; more are read from the disk")
    drop_small_classes: bool = Field(
        False, description="leave out classes with fewer pictures than shots + queries, instead of refusing them"
    )
    skip_damaged: bool = Field(
        False, description="folder: leave out files that cannot be read as pictures, instead of refusing them"
    )

    @model_validator(mode="before")
    @classmethod
    def _unset_keys_get_the_values_of_the_data_set(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        usual = _PICTURES if values.get("name") == "folder" else _DRAWINGS
        return values | {key: value for key, value in usual.items() if values.get(key) is None}

    @model_validator(mode="after")
    def _the_keys_fit_together(self) -> Data:
        for key in ("image_size", "channels"):
            found = getattr(self, key)
            if self.name != "folder" and found != _DRAWINGS[key]:
                raise ValueError(f"`data.{key}` is {_DRAWINGS[key]} for `data.name: {self.name}`, found {found}")
        if self.val_fraction + self.test_fraction >= 1:
            raise ValueError(
                f"`data.val_fraction` + `data.test_fraction` should be less than 1, so that classes are left to train, "
                f"found {self.val_fraction} + {self.test_fraction}"
            )
        return self


class Task(_Section):
    ways: int = Field(5, ge=2, le=MAX_WAYS, description="classes a task")
    shots: int = Field(1, ge=1, le=MAX_WAYS, description="support images a class")
    queries: int = Field(1, ge=1, le=MAX_WAYS, description="query images a class")


class Model(_Section):
    name: Literal["conv4"] = Field("conv4", description="the backbone: four convolution blocks and a linear head")
    filters: int = Field(64, ge=1, le=MAX_FILTERS, description="filters of each convolution")
    downsample: Literal["stride", "max_pool"] = Field(
        "stride", description="halve the image in each block by a stride of 2, or by 2x2 max-pooling"
    )
    pretrained: PathText | None = Field(
        None, description="checkpoint to start from (a new head where its `task.ways` is less); unset: random weights"
    )


class Algorithm(_Section):
    order: Literal["second", "first"] = Field(
        "second", description="`second`: differentiate through the inner loop; `first`: first-order MAML"
    )
    engine: Literal["vectorized", "loop"] = Field(
        "vectorized", description="`vectorized`: many tasks at once; `loop`: learn2learn's, one task after another"
    )
    task_chunk: Tasks | None = Field(
        None, description="vectorized: tasks worked on at once, which bounds the memory; unset: by their size"
    )
    inner_lr: Rate = Field(0.4, description="step size of the inner loop, on the mean cross-entropy")
    learn_inner_lr: bool = Field(
        False, description="meta-learn a step size for each parameter tensor and inner step, starting from `inner_lr`"
    )
    inner_steps: int = Field(1, ge=1, le=1000, description="gradient steps of the inner loop in training")
    normalisation: Literal["batch", "support"] = Field(
        "batch", description="normalise queries by their own `batch`, or inductively by the task's `support` images"
    )


class Train(_Section):
    iterations: Count = Field(60_000, description="meta-iterations")
    meta_batch: Tasks = Field(32, description="tasks a meta-iteration")
    meta_lr: Rate = Field(1e-3, description="learning rate of the outer loop's Adam")
    schedule: Literal["constant", "cosine"] = Field(
        "constant", description="outer learning rate: `constant`, or `cosine` decay to zero over all meta-iterations"
    )
    shift: int = Field(0, ge=0, description="move each training image at random, by up to so many pixels each way")
    validate_every: Count = Field(500, description="meta-iterations between validations")
    validate_tasks: int = Field(200, ge=2, le=1_000_000, description="tasks of the fixed validation set")
    max_grad_norm: Rate | None = Field(None, description="clip the meta-gradient to this norm; unset: not at all")
    checkpoint_every: Count = Field(500, description="meta-iterations between writings of `last.pth`")


class Eval(_Section):
    tasks: int = Field(1000, ge=2, le=1_000_000, description="tasks of an evaluation")
    steps: int = Field(10, ge=0, le=1000, description="accuracy is reported after 0, 1, ..., `steps` inner steps")


class Run(_Section):
    seed: int = Field(0, ge=0, lt=2**63, description="seed of the initial weights and of the task streams")
    device: str = Field(
        "auto",
        pattern=r"^(auto|cpu|mps|cuda(:(0|[1-9][0-9]?))?)$",
        description="`auto` (CUDA where there is a GPU, else `cpu`), `cpu`, `cuda`, `cuda:1`, ..., `mps` (untested)",
    )
    threads: int | None = Field(None, ge=1, le=1024, description="CPU threads of PyTorch; unset: PyTorch's own choice")
    workers: int | None = Field(
        None, ge=0, le=1024, description="processes that draw training tasks ahead; unset: up to 8 with a GPU, else 0"
    )
    compile: bool | Literal["auto"] = Field(
        "auto", description="compile the vectorized engine: true, false, or `auto`: from 1,000 meta-iterations on"
    )
    precision: Literal["float32", "tf32", "bfloat16"] = Field(
        "float32", description="round what is multiplied to `tf32` (GPUs) or `bfloat16` (convolutions; for some CPUs)"
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
    def _the_sections_fit_together(self) -> Experiment:
        if self.train.shift >= self.data.image_size:
            raise ValueError(
                f"`train.shift` should be less than `data.image_size`, {self.data.image_size}, found {self.train.shift}"
            )
        if self.algorithm.engine == "loop":
            for key, refused in (("compile", True), ("precision", "bfloat16")):
                if getattr(self.run, key) == refused:
                    raise ValueError(f"`run.{key}` is for `algorithm.engine: vectorized`, found engine `loop`")
        return self


def load_experiment(path: str | Path | None, overrides: Iterable[str] = ()) -> Experiment:
    """Read the YAML file `path` (None: the documented defaults), then apply `key.path=value` overrides in their order.

    Raises `UserError` naming key, value and file where one is unknown, of the wrong type or out of range.
    """
    values = read_yaml(Path(path)) if path is not None else {}
    for override in overrides:
        apply_override(values, override)
    return parse_experiment(values, origin=str(path) if path is not None else "the command line")


def parse_experiment(values: Any, origin: str) -> Experiment:
    """Validate nested dictionaries, e.g. a checkpoint's; `origin` is named in the `UserError` of what does not fit."""
    try:
        return Experiment.model_validate(values)
    except ValidationError as error:
        keys = [f"{section}.{name}" for section, name, _ in documented_keys()]
        raise UserError(f"{origin}: {describe_problems(error.errors(), keys)}.") from None


def with_overrides(
    experiment: Experiment, overrides: dict[str, Any], origin: str, settings: Iterable[str] = ()
) -> Experiment:
    """`experiment` with `{"section.key": value}` applied and validated; a value of None leaves the key as it is.

    settings: further overrides, as `section.key=value`.
    """
    values = experiment.model_dump()
    for key, value in overrides.items():
        if value is not None:
            section, _, name = key.partition(".")
            values[section][name] = value
    for setting in settings:
        apply_override(values, setting)
    return parse_experiment(values, origin)


def documented_keys() -> Iterable[tuple[str, str, Any]]:
    """(section, key, pydantic field) of every config key, in the order of the file."""
    for section, field in Experiment.model_fields.items():
        for name, key_field in field.annotation.model_fields.items():
            yield section, name, key_field


def changed_keys(old: Experiment, new: Experiment) -> dict[str, tuple[Any, Any]]:
    """`{"section.key": (old value, new value)}` of the keys in which they differ, in the order of the file."""
    keys = ((section, name) for section, name, _ in documented_keys())
    values = {f"{s}.{name}": tuple(getattr(getattr(one, s), name) for one in (old, new)) for s, name in keys}
    return {key: pair for key, pair in values.items() if pair[0] != pair[1]}


def keys_as_markdown() -> str:
    """The README's table of config keys."""
    rows = ["| key | default | meaning |", "|---|---|---|"]
    for section, name, field in documented_keys():
        default = "unset" if field.default is None else yaml.safe_dump(field.default).split("\n")[0]
        rows.append(f"| `{section}.{name}` | {default} | {field.description} |")
    return "\n".join(rows)
