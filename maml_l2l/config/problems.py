"""What a user reads where a config does not fit."""

from __future__ import annotations

import difflib
import os
import reprlib
from collections.abc import Sequence
from typing import Any

from pydantic_core import PydanticCustomError

_MOST = 10  # problems named in one message
_LONGEST_NAME = 200


class _BoundedRepr(reprlib.Repr):
    def __init__(self) -> None:
        super().__init__()
        self.maxlevel, self.maxstring, self.maxother, self.maxlong = 2, 80, 80, 80

    def repr_instance(self, x: Any, level: int) -> str:
        if x is None or isinstance(x, (bool, float, bytes)):
            return super().repr_instance(x, level)
        return f"an object of type {type(x).__name__}"  # whose own repr has no bounds


def describe_problems(problems: Sequence[Any], known: Sequence[str]) -> str:
    """Pydantic's error details in the user's words; `known` holds every key there is, as `section.key`."""
    described = [_describe(problem, known) for problem in problems[:_MOST]]
    if len(problems) > _MOST:
        described.append(f"and {len(problems) - _MOST} more")
    return "; ".join(described)


def shown(value: Any) -> str:
    """`repr(value)`, of bounded length and depth: aliases make a small file a value that is too large to print."""
    return _BoundedRepr().repr(value)


def shortened(text: str, most: int = 80) -> str:
    """`text`, its end left out where it has more than `most` characters."""
    return text if len(text) <= most else text[: most - 3] + "..."


def _describe(problem: Any, known: Sequence[str]) -> str:
    location = [str(part) for part in problem["loc"]]
    key = shortened(".".join(location))
    if problem["type"] == "extra_forbidden":
        return f"unknown key `{key}`{_nearest_key(location, known)}"
    if problem["type"] == "missing":
        return f"`{key}` is missing"
    if problem["type"] == "value_error":
        return problem["msg"].removeprefix("Value error, ")
    expected = problem["msg"].replace("Input should", "should").rstrip(".")
    if problem["type"] in ("model_type", "dict_type", "model_attributes_type"):
        expected = "should be a section of keys"
    if problem["type"] == "invalid_key":
        expected = "should be a name"
    return f"`{key or 'config'}` {expected}, found {shown(problem['input'])}"


def _nearest_key(location: list[str], known: Sequence[str]) -> str:
    """The known key that the user most likely meant: the spelling first, then the same name in another section."""
    sections = list(dict.fromkeys(key.partition(".")[0] for key in known))
    by_name = [key for key in known if key.partition(".")[2] == location[-1]]
    if len(location) == 1:
        near = difflib.get_close_matches(location[0], sections, n=1, cutoff=0.7) or by_name
    else:
        near = difflib.get_close_matches(".".join(location), known, n=1, cutoff=0.75) or by_name
        near = near or difflib.get_close_matches(".".join(location), known, n=1)
    return f" (did you mean `{near[0]}`?)" if near else f" (known sections: {', '.join(sections)})"


def checked_path(text: str) -> str:
    """`text`, for pydantic, which must be a path that a file can have; `~` at its beginning is the home folder."""
    try:
        possible = text and b"\0" not in os.fsencode(text)
    except UnicodeEncodeError:
        possible = False
    if not possible:
        raise PydanticCustomError("path", "Input should be a path that a file can have")
    return os.path.expanduser(text)


def checked_backbone_name(text: str) -> str:
    """`text`, for pydantic, which must be a name, or name a module and what is in it."""
    name, colon, attribute = text.partition(":")
    parts = [*name.split("."), *attribute.split(".")] if colon else [name.replace("-", "_").replace(".", "_")]
    if len(text) > _LONGEST_NAME or not all(part.isidentifier() for part in parts):
        raise PydanticCustomError("backbone", "Input should be the name of a backbone, or package.module:factory")
    return text
