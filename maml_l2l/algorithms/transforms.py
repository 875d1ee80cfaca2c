"""Learned transforms of the inner loop's gradients: learn2learn's, one module per parameter tensor."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.func import functional_call, vjp

from maml_l2l.algorithms.heads import BIAS, WEIGHT

Parameters = dict[str, torch.Tensor]

TRANSFORMS = ("meta_sgd", "meta_curvature", "kronecker")

_DIMENSIONS = (1, 2, 4)  # of the parameters that learn2learn's transforms take


class GradientTransform(nn.Module):
    """A transform for each parameter tensor of a network, as `learn2learn.optim.ParameterUpdate` keeps them."""

    def __init__(self, network: nn.Module, transform: Callable[[torch.Tensor], nn.Module | None], linear: bool):
        """transform: makes the module of a parameter tensor; None leaves its gradient as it is.

        linear: every module is linear in the gradient.
        """
        super().__init__()
        parameters = dict(network.named_parameters())
        modules = {name: transform(parameter) for name, parameter in parameters.items()}
        made = {name: module.to(parameters[name].dtype) for name, module in modules.items() if module is not None}
        self.linear, self._index = linear, {name: index for index, name in enumerate(made)}
        self.transforms = nn.ModuleList(made.values())

    def forward(self, gradients: Parameters) -> Parameters:
        """gradients: of one task, with names and shapes of the network's parameters -> the same, transformed."""
        index = self._index
        return {
            name: self.transforms[index[name]](g.contiguous()) if name in index else g for name, g in gradients.items()
        }


def transformed(
    transform: GradientTransform, learned: Parameters, network: nn.Module, gradients: Parameters
) -> Parameters:
    """The gradients of one task through `transform` with the parameters `learned`.

    It knows them as the network's own parameters lie, the vectorized engine as `task_parameters` arranges them.
    """
    arrange: Any = getattr(network, "task_parameters", None)
    if arrange is None:
        return functional_call(transform, learned, (gradients,))
    zeros = {name: torch.zeros_like(parameter) for name, parameter in network.named_parameters()}
    zeros |= {name: torch.zeros_like(gradients[name]) for name in (WEIGHT, BIAS) if name in gradients}  # other ways
    arranged, back = vjp(arrange, zeros)[:2]  # of a rearrangement, the transpose is the inverse
    natural = back({**arranged, **gradients})[0]
    changed = functional_call(transform, learned, ({name: natural[name] for name in gradients},))
    changed = arrange({**zeros, **changed})
    return {name: changed[name] for name in gradients}


class FeatureCurvature(nn.Module):
    """Meta-Curvature of a linear head that favours no class: a learned matrix along its input mode alone.

    learn2learn's `MetaCurvatureTransform` has one along the classes, too, which ties a network to its number of ways
    and breaks their symmetry.
    """

    def __init__(self, weight: torch.Tensor):
        super().__init__()
        self.mc_out = nn.Parameter(torch.eye(weight.shape[1]))

    def forward(self, gradient: torch.Tensor) -> torch.Tensor:
        """(ways, features) -> the same shape."""
        return gradient @ self.mc_out


class MetaSGDTransform(nn.Module):
    """A factor for each weight (Li et al., 2017), on top of the step size."""

    def __init__(self, parameter: torch.Tensor):
        super().__init__()
        self.factors = nn.Parameter(torch.ones_like(parameter))

    def forward(self, gradient: torch.Tensor) -> torch.Tensor:
        """(any shape) -> the same."""
        return self.factors * gradient


def named_transform(update: str, network: nn.Module) -> Callable[[torch.Tensor], nn.Module | None]:
    """What makes the transforms of `algorithm.update`, one of `TRANSFORMS`; all are linear.

    Meta-Curvature (Park and Oliva, 2019) and Kronecker-factored transforms (Arnold et al., 2019) are learn2learn's. In
    Meta-Curvature the linear layer `head` has `FeatureCurvature`, and its bias nothing. Other shapes stay as they are.
    """
    from learn2learn.nn import KroneckerLinear
    from learn2learn.optim.transforms import KroneckerTransform, MetaCurvatureTransform

    if update == "meta_sgd":
        return MetaSGDTransform
    head = getattr(network, "head", None)
    head = head if isinstance(head, nn.Linear) else None
    made = KroneckerTransform(KroneckerLinear) if update == "kronecker" else MetaCurvatureTransform

    def transform(parameter: torch.Tensor) -> nn.Module | None:
        if update == "meta_curvature" and head is not None and parameter is head.bias:
            return None
        if update == "meta_curvature" and head is not None and parameter is head.weight:
            return FeatureCurvature(parameter)
        return made(parameter) if parameter.ndim in _DIMENSIONS else None

    return transform
