"""Where the computation runs, and how the process is set up for it."""

from __future__ import annotations

import ctypes
import multiprocessing
import os

import torch

from maml_l2l.config import Run
from maml_l2l.errors import UserError

_MOST_WORKERS = 8

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h


def choose_device(run: Run) -> torch.device:
    """Set up this process (CPU threads, memory allocator) and return the device that `run.device` names.

    Raises `UserError` where this machine does not have it.
    """
    if run.threads is not None:
        torch.set_num_threads(run.threads)
    _keep_freed_memory()
    name = run.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and "LOCAL_RANK" in os.environ:  # started by torchrun: each process of a machine has its own GPU
        name = f"cuda:{os.environ['LOCAL_RANK']}"
    device = torch.device(name)
    missing = device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count()
    if missing or (device.type == "mps" and not torch.backends.mps.is_available()):
        raise UserError(f"run.device is {name}, which PyTorch does not find here. Use run.device=auto or cpu.")
    if device.index is not None:
        torch.cuda.set_device(device)
    torch.set_float32_matmul_precision("high" if run.precision == "tf32" else "highest")
    return device


def drawing_workers(run: Run, device: torch.device) -> int:
    """The number of processes that draw tasks while `device` computes: `run.workers`, or what suits the machine.

    On CPUs they would take the cores that compute; beside a GPU one process draws too slowly to keep it busy.
    """
    if run.workers is not None:
        return run.workers
    forks = "fork" in multiprocessing.get_all_start_methods()  # others start slowly, with a copy of all images each
    local_processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return min(_MOST_WORKERS, os.cpu_count() // local_processes) if device.type == "cuda" and forks else 0


def _keep_freed_memory() -> None:
    """Have glibc keep big freed blocks: by default each goes back to the kernel, and comes again by page faults.

    Other C libraries have no `mallopt`, or one that does nothing; they are left as they are.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    mallopt(_M_MMAP_THRESHOLD, 2**30)
    mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
