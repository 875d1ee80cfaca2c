"""Several processes on PyTorch's own distributed engine, as `torchrun` starts them; one alone needs nothing of it.

Processes share out the tasks of each meta-batch and of each evaluation. They hold the same weights, because they start
from the same seed and take the same steps along the same, summed meta-gradient.
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar

import torch
from torch import distributed

from maml_l2l.system.errors import UserError

T = TypeVar("T")

_PATIENCE = timedelta(hours=2)  # a data set may have to be downloaded or decoded by the first process


def processes() -> int:
    """How many processes work on this run."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def rank() -> int:
    """The number of this process, from 0; only process 0 writes."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def restarted() -> bool:
    """Whether `torchrun --max-restarts` has started this process again after one had died."""
    return _restarts() > 0


def job() -> str | None:
    """What all starts of one torchrun have in common, and no other has; None without torchrun."""
    name = os.environ.get("TORCHELASTIC_RUN_ID")
    return f"{socket.gethostname()} {os.getppid()}" if name == "none" else name  # "none": nobody has named it


def _restarts() -> int:
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


@contextmanager
def process_group(device: torch.device) -> Iterator[None]:
    """Join the processes that `torchrun` started, by nccl on GPUs and gloo elsewhere; does nothing without torchrun."""
    if "TORCHELASTIC_RUN_ID" not in os.environ or distributed.is_initialized():
        yield
        return
    backend = "nccl" if device.type == "cuda" else "gloo"
    store, number, world = next(distributed.rendezvous("env://", timeout=_PATIENCE))
    if os.environ.get("GROUP_WORLD_SIZE") == "1":  # machines count their restarts each for itself
        # torchrun keeps its store when it starts processes again, which would find the addresses of the dead in it.
        store = distributed.PrefixStore(f"start {_restarts()}", store)
    distributed.init_process_group(backend, store=store, rank=number, world_size=world, timeout=_PATIENCE)
    try:
        yield
    finally:
        distributed.destroy_process_group()


def share(count: int) -> tuple[int, int]:
    """(first, number) of the share of this process in `count` items; shares differ by one at most."""
    first, end = (count * number // processes() for number in (rank(), rank() + 1))
    return first, end - first


def sum_in_place(tensors: Sequence[torch.Tensor]) -> None:
    """Replace each tensor, all of one type and device, by its sum over the processes, in a single all-reduce."""
    if processes() == 1:
        return
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    distributed.all_reduce(flat)
    for tensor, total in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(total.view_as(tensor))


def any_process(flag: bool, device: torch.device) -> bool:
    """Whether `flag` is true in one of the processes at least."""
    flags = torch.tensor([float(flag)], device=device)
    sum_in_place([flags])
    return flags.item() > 0


def from_all(value: T) -> list[T]:
    """The `value` of every process, in the order of their numbers."""
    if processes() == 1:
        return [value]
    values: list = [None] * processes()
    distributed.all_gather_object(values, value)
    return values


def from_first(make: Callable[[], T]) -> T:
    """What `make()` returns in process 0, which alone calls it.

    After a `UserError` there, which is raised in process 0 and so printed once, the others leave with its exit status.
    """
    value, error = None, None
    if rank() == 0:
        try:
            value = make()
        except UserError as found:
            error = found
    value, failed = from_all((value, error is not None))[0]
    if error is not None:
        raise error
    if failed:
        sys.exit(2)
    return value


@contextmanager
def one_a_machine_first() -> Iterator[None]:
    """The first process of each machine runs the block, then the others do: what it caches on disk, they find."""
    waits = processes() > 1 and os.environ.get("LOCAL_RANK", "0") != "0"
    if waits:
        distributed.barrier()
    yield
    if processes() > 1 and not waits:
        distributed.barrier()
