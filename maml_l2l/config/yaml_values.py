"""Nested values from a YAML file and from `section.key=value` overrides, before anything checks their keys."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from maml_l2l.config.problems import shortened, shown
from maml_l2l.system.errors import UserError
from maml_l2l.system.files import open_regular, reason

MAX_BYTES = 2**16  # of a config: 20 times what every key with a comment takes

_RENAMED = {"algorithm.order": "algorithm.gradient"}
_LONGEST_INT = 64  # bits; Python refuses to print numbers that are much longer


class _YamlLoader(yaml.SafeLoader):
    """PyYAML's safe loader, with YAML 1.2's floats: YAML 1.1 reads `1e-3` as a string.

    It refuses a key that stands there twice, of which PyYAML takes the last, and integers too large to be meant.
    """

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if key.tag == "tag:yaml.org,2002:merge":  # merges of merges grow without bounds
                raise yaml.constructor.ConstructorError(None, None, "merge keys `<<` are not read", key.start_mark)
            if not isinstance(key, yaml.ScalarNode):
                continue  # PyYAML refuses it
            if key.value in seen:
                problem = f"the key `{shortened(key.value)}` stands there twice"
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        number = super().construct_yaml_int(node)
        if number.bit_length() > _LONGEST_INT:
            raise yaml.constructor.ConstructorError(None, None, "the number is too large", node.start_mark)
        return number


_YamlLoader.add_constructor("tag:yaml.org,2002:int", _YamlLoader.construct_yaml_int)
_YamlLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def read_yaml(path: Path) -> dict[str, Any]:
    """The sections of the YAML file `path`.

    Raises `UserError` where it cannot be read, is larger than `MAX_BYTES`, or holds something else.
    """
    try:
        with open_regular(path) as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise UserError(f"cannot read the config {path}: {reason(error)}. Give the path of a YAML file.") from None
    if len(content) > MAX_BYTES:
        raise UserError(f"{path} is larger than {MAX_BYTES} bytes, which no config is. Give the path of a YAML file.")
    try:
        values = _parsed(content.decode())
    except ValueError as error:
        raise UserError(f"{path} is not valid YAML: {error}.") from None
    if not isinstance(values, dict):
        raise UserError(f"{path}: expected sections such as `task:` and `train:`, found {type(values).__name__}.")
    return values


def current_name(key: str) -> str:
    """`section.key` under the name that it has today."""
    return _RENAMED.get(key, key)


def apply_override(values: dict[str, Any], override: str) -> None:
    """Set in `values` what `override`, `section.key=value` with a YAML value, says; `UserError` where it is no such."""
    key, equals, text = override.partition("=")
    section, dot, name = current_name(key.strip()).partition(".")
    if not (equals and dot and section and name):
        raise UserError(f"--set {override}: expected section.key=value, for example train.iterations=2000.")
    try:
        value = _parsed(text)
    except ValueError:
        raise UserError(f"--set {override}: {text!r} is not a YAML value; put quotes around it.") from None
    if values.get(section) is None:
        values[section] = {}
    if not isinstance(values[section], dict):
        raise UserError(f"--set {override}: {section} holds {shown(values[section])}, expected a section of keys.")
    values[section][name] = value


def _parsed(text: str) -> Any:
    """Raises `ValueError` where `text` is no YAML, or holds what cannot be read safely."""
    try:
        return yaml.load(text, _YamlLoader)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except yaml.YAMLError as error:
        raise ValueError(shortened(" ".join(str(error).split()), 300)) from None
    except Exception as error:  # PyYAML's constructors let almost anything through
        raise ValueError(f"a value does not have the form of its type ({shortened(str(error))})") from None
