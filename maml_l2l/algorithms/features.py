"""Adapting the head alone: the images pass through the body once, and the inner steps see its features."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from maml_l2l.algorithms.heads import BIAS, WEIGHT

if TYPE_CHECKING:
    from maml_l2l.algorithms.meta_learner import MetaLearner

_IMAGES_AT_ONCE = 64


class _HeadAlone(nn.Module):
    """The linear head of a network, for images that are features already."""

    def __init__(self, head: nn.Module):
        super().__init__()
        self.head = head

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: (n, width) -> (n, ways)."""
        return self.head(x)


def head_learner(learner: MetaLearner) -> MetaLearner | None:
    """What does to `features_of` the images as `learner` does to the images; None where that is not the same.

    It is where the network says by `features_of_each_alone` that `features` gives what its `head` takes, for each image
    whatever the others are, the inner loop leaves them alone, and nobody asks for gradients through them.
    """
    network, names = learner.module, [name for name, _ in learner.module.named_parameters()]
    adapted = set(learner.adapted_names())
    if (
        torch.is_grad_enabled()
        or not getattr(network, "features_of_each_alone", False)
        or not adapted <= {WEIGHT, BIAS}
    ):
        return None
    if learner.transform is not None or learner.norms is not None:
        return None
    other = type(learner)(_HeadAlone(network.head), learner.lr)
    settings = {name: value for name, value in vars(learner).items() if not name.startswith("_")}
    other.__dict__.update(settings | ({"compiled": False} if "compiled" in settings else {}))
    if learner.inner_lrs is not None:
        other.inner_lrs = nn.Parameter(learner.inner_lrs[:, [names.index(WEIGHT), names.index(BIAS)]])
    return other


def features_of(network: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """images: (T, n, C, H, W) -> (T, n, width)."""
    features_of_some: Any = network.features
    features = [features_of_some(part) for part in images.flatten(0, 1).split(_IMAGES_AT_ONCE)]
    return torch.cat(features).unflatten(0, images.shape[:2])
