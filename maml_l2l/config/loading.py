"""From a YAML file and overrides to an `Experiment`, and what is told of its keys."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from maml_l2l.config.experiment import Experiment
from maml_l2l.config.problems import describe_problems
from maml_l2l.config.yaml_values import apply_override, current_name, read_yaml
from maml_l2l.system.errors import UserError
from maml_l2l.system.files import user_path


def load_experiment(path: str | Path | None, overrides: Iterable[str] = ()) -> Experiment:
    """Read the YAML file `path` (None: the documented defaults), then apply `key.path=value` overrides in their order.

    Raises `UserError` naming key, value and file where one is unknown, of the wrong type or out of range.

    >>> import maml_l2l
    >>> maml_l2l.load_experiment("configs/omniglot_5w1s.yaml", ["task.shots=2"]).task
    Task(ways=5, shots=2, queries=1)
    """
    values = read_yaml(user_path(path)) if path is not None else {}
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
            section, _, name = current_name(key).partition(".")
            values[section][name] = value
    for setting in settings:
        apply_override(values, setting)
    return parse_experiment(values, origin)


def documented_keys() -> Iterable[tuple[str, str, Any]]:
    """(section, key, pydantic field) of every config key, in the order of the file."""
    for section, field in Experiment.model_fields.items():
        kind: Any = field.annotation
        for name, key_field in kind.model_fields.items():
            yield section, name, key_field


def changed_keys(old: Experiment, new: Experiment) -> dict[str, tuple[Any, Any]]:
    """`{"section.key": (old value, new value)}` of the keys in which they differ, in the order of the file."""
    keys = ((section, name) for section, name, _ in documented_keys())
    values = {f"{s}.{name}": tuple(getattr(getattr(one, s), name) for one in (old, new)) for s, name in keys}
    return {key: pair for key, pair in values.items() if pair[0] != pair[1]}


def keys_as_markdown() -> str:
    """The table of config keys in docs/configuration.md."""
    rows = ["| key | default | meaning |", "|---|---|---|"]
    for section, name, field in documented_keys():
        default = "unset" if field.default is None else yaml.safe_dump(field.default).split("\n")[0]
        rows.append(f"| `{section}.{name}` | {default} | {field.description} |")
    return "\n".join(rows)
