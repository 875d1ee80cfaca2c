"""Several processes on PyTorch's own distributed engine, as `torchrun` starts them; one alone needs nothing of it.

Processes share out the tasks of each meta-batch and of each evaluation. They hold the same weights, because they start
from the same seed and take the same steps along the same, summed meta-gradient.
"""

from __future__ import annotations

import os
import secrets
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import distributed

from maml_l2l.system.errors import UserError

T = TypeVar("T")

_PATIENCE = timedelta(minutes=10)  # the first meta-iteration may compile, and a validation take its time
_LOADING = timedelta(hours=2)  # machines may start late, and the first process of each download or decode a data set

_state: dict[str, Any] = {"job": None, "loading": None}  # of the group that this process has joined


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
    return _state["job"]


def _restarts() -> int:
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


@contextmanager
def process_group(device: torch.device) -> Iterator[None]:
    """Join the processes that `torchrun` started, by nccl on GPUs and gloo elsewhere; does nothing without torchrun."""
    if "TORCHELASTIC_RUN_ID" not in os.environ or distributed.is_initialized():
        yield
        return
    backend = "nccl" if device.type == "cuda" else "gloo"
    with _answers():
        store, number, world = next(distributed.rendezvous("env://", timeout=_LOADING))
        # torchrun keeps its store when it starts processes again; users may call many jobs by one name.
        _state["job"] = store.compare_set("maml_l2l job", "", secrets.token_hex(8)).decode()
        if os.environ.get("GROUP_WORLD_SIZE") == "1":  # machines count their restarts each for itself
            # The addresses of the dead are still in the store.
            store = distributed.PrefixStore(f"start {_restarts()}", store)
        distributed.init_process_group(backend, store=store, rank=number, world_size=world, timeout=_PATIENCE)
        _state["loading"] = distributed.new_group(backend="gloo", timeout=_LOADING)
    try:
        yield
    finally:
        _state.update(job=None, loading=None)
        distributed.destroy_process_group()


@contextmanager
def _answers(patience: timedelta = _PATIENCE) -> Iterator[None]:
    """Turn what PyTorch raises where another process does not answer, or is gone, into a `UserError`."""
    try:
        yield
    except RuntimeError as error:  # all of its kinds
        minutes = f"{patience.total_seconds() / 60:g} minutes"
        late = "timed out" in str(error).lower() or "timeout" in str(error).lower()
        problem = f"has not answered for {minutes}" if late else "is gone, and its own message says why"
        raise UserError(f"another process {problem}. See to it, and start again, a training with --resume.") from error


def share(count: int) -> tuple[int, int]:
    """(first, number) of the share of this process in `count` items; shares differ by one at most."""
    first, end = (count * number // processes() for number in (rank(), rank() + 1))
    return first, end - first


def sum_in_place(tensors: Sequence[torch.Tensor]) -> None:
    """Replace each tensor, all of one type and device, by its sum over the processes, in a single all-reduce."""
    if processes() == 1:
        return
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    with _answers():
        distributed.all_reduce(flat)
    for tensor, total in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(total.view_as(tensor))


def any_process(flag: bool, device: torch.device) -> bool:
    """Whether `flag` is true in one of the processes at least."""
    flags = torch.tensor([float(flag)], device=device)
    sum_in_place([flags])
    return flags.item() > 0


def from_all(value: T, patient: bool = False) -> list[T]:
    """The `value` of every process, in the order of their numbers.  patient: wait for them as for loading."""
    return _gathered(value, _state["loading"] if patient else None)


def _gathered(value: T, group: distributed.ProcessGroup | None) -> list[T]:
    if processes() == 1:
        return [value]
    values: list = [None] * processes()
    with _answers(_PATIENCE if group is None else _LOADING):
        distributed.all_gather_object(values, value, group)
    return values


def from_first(make: Callable[[], T]) -> T:
    """What `make()` returns in process 0, which alone calls it. A `UserError` there ends all, see `together`."""
    value = None
    with together():
        if rank() == 0:
            value = make()
    return from_all(value)[0]


@contextmanager
def together() -> Iterator[None]:
    """After a `UserError` of the block in one process no other goes on: the first that has one raises it, so that it is
    printed once, and the others leave with its exit status. The others wait for a block that loads data.
    """
    error = None
    try:
        yield
    except UserError as found:
        error = found
    failed = _gathered(error is not None, _state["loading"])
    if not any(failed):
        return
    if error is not None and failed.index(True) == rank():
        raise error
    sys.exit(2)


def one_a_machine_first(make: Callable[[], T]) -> T:
    """What `make()` returns in the first process of each machine, then in the others, who find what it caches on disk.

    A `UserError` there ends all, see `together`.
    """
    value = None
    is_first = os.environ.get("LOCAL_RANK", "0") == "0" or processes() == 1
    for has_turn in (is_first, not is_first):
        with together():
            if has_turn:
                value = make()
    return value


def check_same(values: Mapping[str, Any], remedy: str) -> None:
    """Raise `UserError`, which ends all, where another process has other `values` than the first; `remedy`: what to do.

    Processes that work on different things would mix them without a word, or wait for one another for ever.
    """
    with together():
        first, *others = from_all(dict(values))
        for number, other in enumerate(others, start=1):
            for key, value in first.items():
                if other[key] != value:
                    raise UserError(
                        f"process {number} of torchrun works with another {key} than process 0, "
                        f"{other[key]!r} and {value!r}. {remedy}"
                    )
