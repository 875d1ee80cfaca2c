"""Nested values from a YAML file and from `section.key=value` overrides, before anything checks their keys."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from maml_l2l.errors import UserError


class _YamlLoader(yaml.SafeLoader):
    """PyYAML's safe loader, with YAML 1.2's floats: YAML 1.1 reads `1e-3` as a string."""


_YamlLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def read_yaml(path: Path) -> dict[str, Any]:
    """The sections of the YAML file `path`. Raises `UserError` where it cannot be read, or holds something else."""
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), _YamlLoader)
    except OSError as error:
        raise UserError(f"cannot read the config {path}: {error.strerror}. Give the path of a YAML file.") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid YAML: {' '.join(str(error).split())}.") from None
    if not isinstance(values, dict):
        raise UserError(f"{path}: expected sections such as `task:` and `train:`, found {type(values).__name__}.")
    return values


def apply_override(values: dict[str, Any], override: str) -> None:
    """Set in `values` what `override`, `section.key=value` with a YAML value, says; `UserError` where it is no such."""
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
