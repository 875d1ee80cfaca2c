"""Where the computation runs, and how PyTorch is set up while it does."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch

from maml_l2l.system.errors import UserError

_MOST_WORKERS = 8


def find_device(name: str = "auto") -> torch.device:
    """The device that `name` (of the config key `run.device`) means on this machine; nothing is set up for it.

    Raises `UserError` where this machine does not have it.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and "LOCAL_RANK" in os.environ:  # started by torchrun: each process of a machine has its own GPU
        name = f"cuda:{os.environ['LOCAL_RANK']}"
    device = torch.device(name)
    missing = device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count()
    if missing or (device.type == "mps" and not torch.backends.mps.is_available()):
        raise UserError(f"run.device is {name}, which PyTorch does not find here. Use run.device=auto or cpu.")
    return device


def multiplies_bfloat16() -> bool:
    """Whether this processor multiplies bfloat16 numbers in less time than float32 ones, and PyTorch does so rightly.

    With AMX, which newer Intel processors take, torch 2.14 compiles the products of a second-order gradient wrong.
    """
    return torch.cpu._is_avx512_bf16_supported() and not torch.cpu._is_amx_tile_supported()


@contextmanager
def computing(device: torch.device, threads: int | None = None, precision: str = "float32") -> Iterator[None]:
    """Set PyTorch's CPU threads, its rounding of products and its current GPU; the caller's come back afterwards.

    threads, precision: those of the config's `run` section.
    """
    before = torch.get_num_threads(), torch.get_float32_matmul_precision()
    if threads is not None:
        torch.set_num_threads(threads)
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    try:
        with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
            yield
    finally:
        torch.set_num_threads(before[0])
        torch.set_float32_matmul_precision(before[1])


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Draw from PyTorch's generators of the CPU and of `device` as after `seed`; the caller's state comes back."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.default_generator.manual_seed(seed)
        if device.type == "cuda":
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield


def drawing_workers(wanted: int | None, device: torch.device) -> int:
    """The number of processes that draw tasks while `device` computes: `wanted`, or what suits the machine.

    On CPUs they would take the cores that compute; beside a GPU one process draws too slowly to keep it busy.
    """
    if wanted is not None:
        return wanted
    forks = "fork" in multiprocessing.get_all_start_methods()  # others start slowly, with a copy of all images each
    local_processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return min(_MOST_WORKERS, os.cpu_count() // local_processes) if device.type == "cuda" and forks else 0
