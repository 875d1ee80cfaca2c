"""3x3 convolutions with fewer multiplications: F(2x2, 3x3) of Winograd (Lavin and Gray, 2016, section 4.1).

A tile of 4x4 pixels gives 2x2 outputs. Sums along its rows and columns turn it into 16 numbers per channel, sums of
the 9 weights turn a kernel into 16 as well, and 16 products take the place of 36. All of it is linear in the tile and
in the kernel, so that automatic differentiation goes through it both ways.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn import functional as F


def convolve(
    x: torch.Tensor,
    kernels: torch.Tensor,
    product: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] = torch.bmm,
) -> torch.Tensor:
    """The convolution of T tasks with padding 1 and stride 1, each with kernels of its own.

    x: (T, n, H, W, C).  kernels: (T, 3, 3, C, F).  -> (T, n, H, W, F).  product: as `torch.bmm`.
    """
    tiles, taps = _tiles(x), _taps(kernels)
    count, _, _, n, height, width, channels = tiles.shape
    products = product(tiles.reshape(count * 16, -1, channels), taps.reshape(count * 16, channels, -1))
    outputs = _sums_of_outputs(products.view(count, 4, 4, n, height, width, -1), dim=1, to=4)
    outputs = _sums_of_outputs(outputs, dim=1, to=5).reshape(count, n, 2 * height, 2 * width, -1)
    return outputs[:, :, : x.shape[2], : x.shape[3]]


def _tiles(x: torch.Tensor) -> torch.Tensor:
    """B^T d B of each tile d: (T, n, H, W, C) -> (T, 4, 4, n, H / 2, W / 2, C), rounded up."""
    height, width = x.shape[2:4]
    x = F.pad(x, (0, 0, 1, 1 + width % 2, 1, 1 + height % 2))
    x = torch.stack(_sums_of_pixels(x, dim=2), 1)
    return torch.stack(_sums_of_pixels(x, dim=4), 2)


def _sums_of_pixels(x: torch.Tensor, dim: int) -> list[torch.Tensor]:
    """B^T d along `dim`, of even size. A tile is two pairs, each of which it shares with a neighbour.

    Slices with a step of 2 would say the same, but their gradients do not fold back in one pass.
    """
    even, odd = x.unflatten(dim, (-1, 2)).unbind(dim + 1)
    count = even.shape[dim] - 1
    a, b, c, d = (part.narrow(dim, first, count) for first in (0, 1) for part in (even, odd))
    return [a - c, b + c, c - b, b - d]


def _taps(kernels: torch.Tensor) -> torch.Tensor:
    """G g G^T of each kernel g: (T, 3, 3, C, F) -> (T, 4, 4, C, F)."""
    for dim in (1, 2):
        a, b, c = kernels.unbind(dim)
        kernels = torch.stack([a, (a + b + c) / 2, (a - b + c) / 2, c], dim)
    return kernels


def _sums_of_outputs(x: torch.Tensor, dim: int, to: int) -> torch.Tensor:
    """A^T m along `dim`, of size 4; its two results lie along the new dimension `to`."""
    a, b, c, d = x.unbind(dim)
    return torch.stack([a + b + c, b - c - d], to)
