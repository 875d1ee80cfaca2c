"""How the process of a command takes memory from the system, and what is raised where there is none left."""

from __future__ import annotations

import ctypes
import errno
import re
import sys

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h


# Of PyTorch's allocators (Linux and macOS, Windows, MPS) and of what maps files; they raise no kind of their own.
_NO_MEMORY = re.compile(r"can(no|')t allocate memory|not enough memory|out of memory", re.IGNORECASE)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether Python, NumPy, PyTorch or the system raised `error` because the memory of the machine or GPU is full."""
    if isinstance(error, MemoryError):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    torch = sys.modules.get("torch")  # not imported for this: --help does without
    if torch is not None and isinstance(error, torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and _NO_MEMORY.search(str(error)) is not None


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
