"""Work on many drawings, shared out to the cores."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

Item, Result = TypeVar("Item"), TypeVar("Result")


def mapped(function: Callable[[Item], Result], items: Sequence[Item], at_once: int) -> Iterator[Result]:
    """`map(function, items)` by as many processes as there are cores, which take `at_once` items at a time.

    By this process alone where there is little to do, and where processes cannot be forked: started afresh they would
    run a script without `if __name__ == "__main__"` a second time.
    """
    processes = min(_cores(), len(items) // at_once)
    if processes < 2 or "fork" not in multiprocessing.get_all_start_methods():
        yield from map(function, items)
        return
    with multiprocessing.get_context("fork").Pool(processes, _leave_interrupts_to_the_parent) as pool:
        yield from pool.imap(function, items, at_once)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _leave_interrupts_to_the_parent() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
