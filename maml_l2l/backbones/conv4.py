"""The convolutional networks that MAML adapts."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from maml_l2l.backbones import winograd

Parameters = dict[str, torch.Tensor]

_WINOGRAD_CHANNELS, _WINOGRAD_SIDE = 16, 4  # from here on its sums take less time than the products that they save


class BatchStatisticsNorm(nn.BatchNorm2d):
    """Batch normalisation that always uses the statistics of the images at hand, never running ones.

    Clones of a network would share running statistics between tasks, so none are kept.
    """

    EPS = 1e-5

    def __init__(self, channels: int):
        super().__init__(channels, eps=self.EPS, track_running_stats=False)

    def forward(self, x: torch.Tensor, statistics_from: int | None = None) -> torch.Tensor:
        """x: (N, C, H, W) -> the same shape. `statistics_from` = n takes the statistics of the first n images only."""
        if statistics_from is None:
            return super().forward(x)
        variance, mean = torch.var_mean(x[:statistics_from], dim=(0, 2, 3), keepdim=True, correction=0)
        scale = self.weight[:, None, None] * torch.rsqrt(variance + self.eps)
        return (x - mean) * scale + self.bias[:, None, None]


class Conv4(nn.Module):
    """The backbone of Finn et al. (2017, section 5.2), after Vinyals et al. (2016).

    Four blocks of [3x3 convolution, batch normalisation, ReLU], each halving the image by a stride of 2 (the paper's
    choice for Omniglot) or by 2x2 max-pooling, then the mean over all positions and a linear head.

    Normalisation policy: the statistics of the batch at hand. A prediction for a query therefore depends on the images
    that are scored with it, unless `statistics_from` names the support images that stand first in the batch.
    """

    product_dtype: torch.dtype | None = None
    """What `forward_tasks` rounds patches and weights to before it multiplies them; None: not at all."""

    def __init__(self, ways: int, channels: int = 1, filters: int = 64, downsample: str = "stride"):
        """`ways`: outputs of the head. `downsample`: `stride` or `max_pool`."""
        super().__init__()
        stride = 2 if downsample == "stride" else 1
        self.pool = downsample == "max_pool"
        inputs = [channels, filters, filters, filters]
        convolutions = [nn.Conv2d(n, filters, 3, stride=stride, padding=1) for n in inputs]
        self.convolutions = nn.ModuleList(convolutions)
        self.norms = nn.ModuleList(BatchStatisticsNorm(filters) for _ in inputs)
        self.head = nn.Linear(filters, ways)
        for convolution in convolutions:
            nn.init.xavier_uniform_(convolution.weight)
            if convolution.bias is not None:
                nn.init.zeros_(convolution.bias)

    def forward(self, x: torch.Tensor, statistics_from: int | None = None) -> torch.Tensor:
        """x: (N, C, H, W) in [0, 1] -> logits (N, ways). `statistics_from`: see `BatchStatisticsNorm.forward`."""
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            x = norm(convolution(x), statistics_from)
            if self.pool and min(x.shape[-2:]) > 1:
                x = F.max_pool2d(x, 2)
            x = F.relu(x)  # the maximum of what is rectified is the rectified maximum, of a quarter as many numbers
        return self.head(x.mean((2, 3)))

    def _convolve(self, x: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """x: (T, n, H, W, C), weights: (T, 9 * C, F) -> (T, n, H', W', F), as products of matrices."""
        height, width, channels = x.shape[2:]
        if self.pool and not x.is_cuda and channels >= _WINOGRAD_CHANNELS and min(height, width) >= _WINOGRAD_SIDE:
            return winograd.convolve(x, weights.unflatten(1, (3, 3, channels)), self._product)
        patches = _patches_stride_1(x) if self.pool else _patches_stride_2(x)
        return self._product(patches.flatten(1, 3), weights).view(*patches.shape[:4], -1)

    def _product(self, patches: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """(T, P, K) @ (T, K, F) in `product_dtype`; sums, normalisation and everything else stay as they are."""
        if self.product_dtype is None:
            return torch.bmm(patches, weights)
        return torch.bmm(patches.to(self.product_dtype), weights.to(self.product_dtype)).to(patches.dtype)

    def task_parameters(self, parameters: Parameters) -> Parameters:
        """`named_parameters()` in the layout of `forward_tasks`: convolution weights as matrices (9 * C, F).

        Their entries are permuted and nothing else, so gradient steps in either layout are the same steps. The
        convolutions' biases are left out: batch normalisation takes them away again, and their gradient is zero.
        """
        arranged = {name: p for name, p in parameters.items() if not name.startswith("convolutions")}
        for index in range(len(self.convolutions)):
            taps = parameters[f"convolutions.{index}.weight"].permute(2, 3, 1, 0)  # (3, 3, C, F)
            parts = [taps] if self.pool else _cells_order(taps)
            arranged[f"convolutions.{index}.weight"] = torch.cat([part.reshape(-1, taps.shape[-1]) for part in parts])
        return arranged

    def forward_tasks(
        self, parameters: Parameters, x: torch.Tensor, statistics_from: int | None = None
    ) -> torch.Tensor:
        """`forward` for T tasks at once, each with its own weights.

        parameters: those of `task_parameters`, each (T, ...).  x: (T, n, C, H, W) -> logits (T, n, ways).
        With other weights for each task, convolutions would be grouped ones, which CPUs do slowly; see `_convolve`.
        """
        x = x.permute(0, 1, 3, 4, 2)
        for index in range(len(self.convolutions)):
            x = self._convolve(x, parameters[f"convolutions.{index}.weight"])
            scale, shift = parameters[f"norms.{index}.weight"], parameters[f"norms.{index}.bias"]
            x = _normalise(x, scale, shift, statistics_from)
            if self.pool and min(x.shape[2:4]) > 1:
                x = _max_pool(x)
            x = F.relu(x)
        return torch.baddbmm(
            parameters["head.bias"][:, None], x.mean((2, 3)), parameters["head.weight"].transpose(1, 2)
        )


def _cells_order(taps: torch.Tensor) -> list[torch.Tensor]:
    """The taps of a 3x3 kernel (3, 3, ...) in the order in which `_patches_stride_2` lays them out."""
    return [taps[1:, 1:], taps[1:, 0], taps[0, 1:], taps[0, 0]]


def _patches_stride_1(x: torch.Tensor) -> torch.Tensor:
    """3x3 patches with padding 1 of x: (T, n, H, W, C) -> (T, n, H, W, 9 * C)."""
    height, width = x.shape[2:4]
    padded = F.pad(x, (0, 0, 1, 1, 1, 1))
    taps = [padded[:, :, i : i + height, j : j + width] for i in range(3) for j in range(3)]
    return torch.cat(taps, dim=-1)


def _patches_stride_2(x: torch.Tensor) -> torch.Tensor:
    """The same with stride 2 -> (T, n, H', W', 9 * C), the taps in `_cells_order`.

    The image falls into cells of 2x2 pixels. Output (r, c) sees all of cell (r, c), the right column of the cell to its
    left, the lower row of the cell above it and the lower right pixel of the cell above left: contiguous pieces, which
    fold back in one pass when gradients flow the other way.
    """
    height, width = x.shape[2:4]
    if height % 2 or width % 2:
        x = F.pad(x, (0, 0, 0, width % 2, 0, height % 2))
    cells = x.unflatten(3, (-1, 2)).unflatten(2, (-1, 2)).transpose(3, 4)  # (T, n, H', W', 2, 2, C)
    left = F.pad(cells[..., 1, :].flatten(4), (0, 0, 1, -1))
    above = F.pad(cells[..., 1, :, :].flatten(4), (0, 0, 0, 0, 1, -1))
    above_left = F.pad(cells[..., 1, 1, :], (0, 0, 1, -1, 1, -1))
    return torch.cat([cells.flatten(4), left, above, above_left], dim=-1)


def _max_pool(x: torch.Tensor) -> torch.Tensor:
    """2x2 max-pooling of x: (T, n, H, W, C) -> (T, n, H // 2, W // 2, C)."""
    if torch.compiler.is_compiling():
        # Fused with what surrounds it both ways, which a scatter of gradients to the places of the maxima is not. Equal
        # maxima share a gradient that the scatter gives to the first: they come of equal patches, or else by chance.
        height, width = x.shape[2] // 2, x.shape[3] // 2
        cells = x[:, :, : 2 * height, : 2 * width].unflatten(3, (width, 2)).unflatten(2, (height, 2))
        upper, lower = (torch.maximum(row[..., 0, :], row[..., 1, :]) for row in cells.unbind(3))
        return torch.maximum(upper, lower)
    return F.max_pool2d(x.flatten(0, 1).permute(0, 3, 1, 2), 2).permute(0, 2, 3, 1).unflatten(0, x.shape[:2])


def _normalise(x: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor, statistics_from: int | None) -> torch.Tensor:
    """`BatchStatisticsNorm` for x: (T, n, H, W, C), scale and shift: (T, C)."""
    variance, mean = torch.var_mean(x[:, :statistics_from], dim=(1, 2, 3), keepdim=True, correction=0)
    scale = scale[:, None, None, None] * torch.rsqrt(variance + BatchStatisticsNorm.EPS)
    return (x - mean) * scale + shift[:, None, None, None]
