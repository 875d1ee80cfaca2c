"""What a user reads where a config does not fit."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any


def describe_problem(problem: Any, known: Sequence[str]) -> str:
    """One of pydantic's error details in the user's words; `known` holds every key there is, as `section.key`."""
    location = [str(part) for part in problem["loc"]]
    key = ".".join(location)
    if problem["type"] == "extra_forbidden":
        return f"unknown key `{key}`{_nearest_key(location, known)}"
    if problem["type"] == "value_error":
        return problem["msg"].removeprefix("Value error, ")
    expected = problem["msg"].replace("Input should", "should").rstrip(".")
    if problem["type"] in ("model_type", "dict_type", "model_attributes_type"):
        expected = "should be a section of keys"
    return f"`{key or 'config'}` {expected}, found {problem['input']!r}"


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
