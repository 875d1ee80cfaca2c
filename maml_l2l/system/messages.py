"""What the package says on its way: through `logging` and `warnings`, with progress bars only where asked for.

A command puts all of it on the screen; a program that uses the package decides for itself.
"""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from types import FrameType

from tqdm import tqdm

from maml_l2l.system.errors import printable

LOGGER = "maml_l2l"

_bars_shown = ContextVar("bars_shown", default=False)


def progress_bar(iterable: Iterable | None = None, description: str | None = None, **options) -> tqdm:
    """tqdm's bar, which shows on a terminal and inside `progress_bars()` only. options: tqdm's."""
    return tqdm(iterable, description, disable=None if _bars_shown.get() else True, **options)


@contextmanager
def progress_bars(shown: bool = True) -> Iterator[None]:
    """Show, or do not show, the bars that are made in this context."""
    before = _bars_shown.set(shown)
    try:
        yield
    finally:
        _bars_shown.reset(before)


def warn_user(message: str) -> None:
    """Warn at the line that called into this package: what the warning is about came from there."""
    frame: FrameType | None = sys._getframe(1)
    level = outside = 2
    while frame is not None:
        level += 1
        if frame.f_globals.get("__name__", "").partition(".")[0] == LOGGER:
            outside = level
        frame = frame.f_back
    warnings.warn(message, stacklevel=outside)


@contextmanager
def on_screen() -> Iterator[None]:
    """Print what the package logs to stdout, and every warning to stderr as one line, above the bars that are shown."""
    logger, handler = logging.getLogger(LOGGER), _Screen()
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            # Of damaged metadata, which do not matter, and of a picture that is refused by name right afterwards.
            warnings.filterwarnings("ignore", module=r"PIL\.")
            yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


class _Screen(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno < logging.WARNING:
            tqdm.write(printable(record.getMessage()))
        else:
            _write_warning(record.getMessage())


def _show_warning(message: Warning | str, *_: object) -> None:
    _write_warning(str(message))


def _write_warning(text: str) -> None:
    tqdm.write(f"warning: {printable(text)}", file=sys.stderr)
