"""The head that starts as the prototypes of a task's classes."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from maml_l2l.system.errors import UserError

WEIGHT, BIAS = "head.weight", "head.bias"


def identity_head(width: int, like: torch.Tensor) -> dict[str, torch.Tensor]:
    """Parameters of the linear layer `head` that give its inputs, (n, width), as its outputs."""
    return {WEIGHT: torch.eye(width, dtype=like.dtype, device=like.device), BIAS: like.new_zeros(width)}


def prototype_head(features: torch.Tensor, labels: torch.Tensor, ways: int | None) -> dict[str, torch.Tensor]:
    """ProtoMAML's head (Triantafillou et al., 2020, section 3): w_c = 2 p_c, b_c = -|p_c|^2 for the prototype p_c.

    p_c is the mean over the support images of class c. The outputs are then, up to a constant for each image, the
    negative squared distances to the prototypes (Snell et al., 2017).
    features: (..., n, width).  labels: (..., n) int64, every class among them -> (..., ways, width) and (..., ways).
    Raises `UserError` where the targets are no classes, so `ways` is None.
    """
    if ways is None:
        raise UserError("a head of prototypes is for classes, found targets that are none. Give labels, int64.")
    member = F.one_hot(labels, ways).to(features.dtype)
    prototypes = (member.transpose(-1, -2) @ features) / member.sum(-2)[..., None]
    return {WEIGHT: 2 * prototypes, BIAS: -(prototypes * prototypes).sum(-1)}
