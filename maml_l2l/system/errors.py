"""The one error type that a user's mistake or a user's machine raises."""

from __future__ import annotations

from collections.abc import Sequence


class UserError(Exception):
    """Something the user can mend: the message says what was expected, what was found and what to do.

    Commands print it as one `error: ...` line and leave with exit status 2, without a traceback.
    """


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
