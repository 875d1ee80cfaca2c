"""What a mistake of the user or a failing machine raises: `UserError`, and kinds of it that have other names, too."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any


class UserError(ValueError):
    """Something the user can mend: the message says what was expected, what was found and what to do.

    Commands print it as one `error: ...` line and leave with exit status 2, without a traceback.
    """


class MissingPackage(UserError, ImportError):
    """A package that this one needs is not installed."""


class _NotFitted(UserError):
    def __reduce__(self) -> tuple[Any, ...]:
        return not_fitted, self.args  # the class itself is made where it is raised, and could not be found again


def not_fitted(message: str) -> UserError:
    """The error of an estimator that is used before `fit`.

    It is scikit-learn's `NotFittedError` too wherever scikit-learn has been imported, which is not done for this: no
    caller could name that class otherwise.
    """
    scikit_learn = sys.modules.get("sklearn.exceptions")
    kind = AttributeError if scikit_learn is None else scikit_learn.NotFittedError
    return type("NotFittedError", (_NotFitted, kind), {"__module__": __name__})(message)


class Stopped(KeyboardInterrupt):
    """A signal ended the command in good order, after all was saved; the message says how to go on.

    Commands print it and leave with exit status 128 + `signal_number`, as shells have it: 130 after Ctrl-C.
    """

    def __init__(self, message: str, signal_number: int):
        super().__init__(message)
        self.signal_number = signal_number


def listing(items: Sequence[str], most: int = 10) -> str:
    """`a, b, c`, for a message: the first `most` items, then how many more there are."""
    more = f" and {len(items) - most} more" if len(items) > most else ""
    return ", ".join(map(printable, items[:most])) + more


def printable(text: str) -> str:
    """`text` in one line, with escapes for what would steer a terminal, as the names of files and keys may."""
    line = " ".join(text.splitlines())
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in line)
