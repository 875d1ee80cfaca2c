"""Calling a module with other parameters than its own, for derivatives of any order."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel


def other_names(module: nn.Module) -> dict[str, str]:
    """Of each parameter that several layers share, or a layer has twice, every further name with the first one."""
    first: dict[nn.Parameter, str] = {}
    others = {}
    for prefix, part in module.named_modules():  # each layer once, in however many places it stands
        for name, parameter in part.named_parameters(prefix, recurse=False, remove_duplicate=False):
            if first.setdefault(parameter, name) != name:
                others[name] = first[parameter]
    return others


def call_with(
    module: nn.Module, parameters: dict[str, torch.Tensor], others: dict[str, str], *inputs: torch.Tensor
) -> Any:
    """`module(*inputs)` with `parameters`, named as `named_parameters()` does; others: `other_names(module)`.

    `functional_call` alone leaves a module in which a layer stands in two places, as in learn2learn's `OmniglotCNN`,
    without its own parameters (pytorch issue 164759).
    """
    shared = {name: parameters[first] for name, first in others.items()}
    return functional_call(module, {**parameters, **shared}, inputs, tie_weights=False)


def random_state(device: torch.device) -> list[torch.Tensor]:
    """The states of the generators that a module on `device` draws from."""
    on_gpu = [torch.cuda.get_rng_state(device)] if device.type == "cuda" else []
    return [torch.get_rng_state(), *on_gpu]


def draw_from(state: list[torch.Tensor], device: torch.device) -> None:
    """Go on drawing as after `state`, one of `random_state(device)`."""
    torch.set_rng_state(state[0])
    if device.type == "cuda":
        torch.cuda.set_rng_state(state[1], device)


def in_precision(dtype: torch.dtype, values: torch.Tensor) -> torch.Tensor:
    """`values` in `dtype`, where they are real numbers; labels, say, stay as they are."""
    return values.to(dtype) if values.is_floating_point() else values


@contextmanager
def plain_attention() -> Iterator[None]:
    """Within it attention consists of operations that have second derivatives, which PyTorch's fused ones lack."""
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
