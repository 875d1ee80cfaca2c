"""How the process of a command takes memory from the system."""

from __future__ import annotations

import ctypes

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h


def keep_freed_memory() -> None:
    """Have glibc keep big freed blocks: by default each goes back to the kernel, and comes again by page faults.

    It holds for the whole process and cannot be taken back, so commands do it and the library does not.
    Other C libraries have no `mallopt`, or one that does nothing; they are left as they are.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    mallopt(_M_MMAP_THRESHOLD, 2**30)
    mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
