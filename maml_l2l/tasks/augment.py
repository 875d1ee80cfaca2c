"""Drawings as another hand and another pen would have drawn them: random changes of training images."""

from __future__ import annotations

import math

import torch
from torch.nn import functional as F

DRAWS = 9  # random numbers for each image

# At strength 1: from minus to plus these.
_TURN = math.radians(15)
_SHEAR, _SCALE, _SHIFT = 0.2, 0.2, 2.0  # of 1, of 1, pixels
_PEN = 0.15  # of the level at which blurred ink ends, around 0.35: strokes of 2 pixels become 1.6 to 2.7 wide
_EDGE, _LEVEL = 3.0, 0.35
_FADED = 0.3  # share of the contrast that goes at most


def draws(count: int, seed: int) -> torch.Tensor:
    """(`count`, `DRAWS`) numbers, uniform from -1 to 1: what `augmented` does to `count` images; `seed` decides all."""
    return 2 * torch.rand(count, DRAWS, generator=torch.Generator().manual_seed(seed)) - 1


def augmented(images: torch.Tensor, draws: torch.Tensor, strength: float = 1.0) -> torch.Tensor:
    """Each image turned, sheared, scaled, moved, with another pen width, blurred and faded.

    images: (N, C, H, W) from 0 (paper) to 1 (ink).  draws: (N, `DRAWS`) from -1 to 1, on the same device.
    strength: factor on all ranges; 1: up to 15 degrees, shear 0.2, 0.8 to 1.2 of width and height, 2 pixels.
    """
    draws = draws.to(images.dtype) * strength
    grid = F.affine_grid(_placement(draws, images.shape[-1]), list(images.shape), align_corners=False)
    moved = F.grid_sample(images, grid, align_corners=False)
    pen, blur, faded = (draws[:, column, None, None, None] for column in (6, 7, 8))
    # A stroke ends where its blurred ink falls below a level: the lower that is, the wider the stroke.
    drawn = (_EDGE * (_blurred(moved) - _LEVEL + _PEN * pen) + 0.5).clamp(0, 1)
    drawn = torch.lerp(drawn, _blurred(drawn), blur.abs().clamp(max=1))
    return drawn * (1 - _FADED * faded.abs()).clamp(min=0)


def _placement(draws: torch.Tensor, width: int) -> torch.Tensor:
    """(N, 2, 3): for each place of the result, from -1 to 1, the place of the image that it shows."""
    angle, shear = _TURN * draws[:, 0], _SHEAR * draws[:, 1]
    across, down = (1 / (1 + _SCALE * draws[:, column]).clamp(min=0.1) for column in (2, 3))
    cosine, sine = angle.cos(), angle.sin()
    rows = [across * cosine, across * (shear * cosine - sine), down * sine, down * (cosine + shear * sine)]
    linear = torch.stack(rows, 1).view(-1, 2, 2)
    return torch.cat([linear, draws[:, 4:6, None] * (2 * _SHIFT / width)], 2)


def _blurred(images: torch.Tensor) -> torch.Tensor:
    """Each pixel with its neighbours in the weights 1, 2, 1 along both axes."""
    for axis in (-1, -2):
        pad = (1, 1, 0, 0) if axis == -1 else (0, 0, 1, 1)
        wide = F.pad(images, pad)
        size = images.shape[axis]
        images = (wide.narrow(axis, 0, size) + 2 * images + wide.narrow(axis, 2, size)) / 4
    return images
