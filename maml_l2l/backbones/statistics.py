"""Where batch normalisation takes its statistics from."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn

from maml_l2l.system.errors import UserError

_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_NORMS = (
    *_BATCH_NORMS,
    nn.InstanceNorm1d,
    nn.InstanceNorm2d,
    nn.InstanceNorm3d,
    nn.GroupNorm,
    nn.LayerNorm,
    nn.RMSNorm,
)


def norm_parameter_names(network: nn.Module) -> list[str]:
    """The names of the scales and shifts of the normalisation layers of `network`, but for frozen ones, in order."""
    layers = [name for name, module in network.named_modules() if isinstance(module, _NORMS)]
    learned = (name for name, parameter in network.named_parameters() if parameter.requires_grad)
    return [name for name in learned if name.rpartition(".")[0] in layers]


@contextmanager
def first_images_normalise(network: nn.Module, count: int | None, total: int | None) -> Iterator[None]:
    """Within it, batch normalisation in `network` takes its statistics from the first `count` images of a batch.

    None: from all of them, as always. This is how a query is scored inductively: the support images stand first, and
    no query changes what another one's answer is (Bronskill et al., 2020, section 3.1: TaskNorm). Layers that look at
    each image alone, such as `LayerNorm`, `GroupNorm` and norms with constant statistics, are inductive as they are.
    total: images of that batch.  Raises `UserError` where a layer gets another number of them, as of pieces of images.
    """
    hooks = []
    if count is not None:
        norms = [module for module in network.modules() if isinstance(module, _BATCH_NORMS)]
        layers = [norm for norm in norms if norm.running_mean is None]
        hooks = [layer.register_forward_hook(partial(_normalised, count=count, total=total)) for layer in layers]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _normalised(
    layer: Any, inputs: tuple[torch.Tensor, ...], _output: torch.Tensor, count: int, total: int | None
) -> torch.Tensor:
    """What `layer` gives for (N, C, ...) with the statistics of the first `count` of N, in place of its own output."""
    x = inputs[0]
    if len(x) not in (count, total):
        raise UserError(
            "normalisation 'support' wants batch normalisation of whole images, and this network's "
            f"{type(layer).__name__} normalises parts of them. Take 'batch', or a layer that looks at each image alone."
        )
    around = [dim for dim in range(x.ndim) if dim != 1]
    variance, mean = torch.var_mean(x[:count], dim=around, keepdim=True, correction=0)
    normalised = (x - mean) * torch.rsqrt(variance + layer.eps)
    if layer.weight is None:
        return normalised
    scale, shift = (parameter.view(-1, *[1] * (x.ndim - 2)) for parameter in (layer.weight, layer.bias))
    return normalised * scale + shift
