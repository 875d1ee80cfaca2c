"""Standard output and standard error that a program outlives: closed, full, or read by somebody who leaves."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO


class Screen:
    """A text stream that takes what is written after it has failed, and says in `problem` what the failure was."""

    def __init__(self, stream: TextIO):
        self._stream = stream
        self.problem: OSError | None = None

    def write(self, text: str) -> int:
        """Write `text`, or drop it where the stream has failed."""
        self._attempt(lambda: self._stream.write(text))
        return len(text)

    def flush(self) -> None:
        """Flush, where the stream has not failed."""
        self._attempt(self._stream.flush)

    def _attempt(self, action: Callable[[], object]) -> None:
        if self.problem is None:
            try:
                action()
            except OSError as error:
                self.problem = error
                # What is still buffered goes nowhere, also when the interpreter flushes it at its end.
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, self._stream.fileno())
                os.close(nowhere)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def screens() -> Iterator[tuple[Screen, Screen]]:
    """Have `sys.stdout` and `sys.stderr` never fail, whatever they lead to, nor over characters they do not know."""
    for descriptor in range(3):  # else the next file that is opened becomes what others take for the screen
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    before = sys.stdout, sys.stderr
    streams = [
        os.fdopen(descriptor, "w", encoding="utf-8", closefd=False) if stream is None else stream
        for descriptor, stream in zip((1, 2), before, strict=True)
    ]
    for stream in streams:
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    found = Screen(streams[0]), Screen(streams[1])
    sys.stdout, sys.stderr = found  # type: ignore[assignment]
    try:
        yield found
    finally:
        for screen in found:
            screen.flush()
        sys.stdout, sys.stderr = before
