"""The residual network that few-shot learning uses most."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F


class ResNet12(nn.Module):
    """ResNet-12 with 64, 160, 320 and 640 filters, as MetaOptNet has it (Lee et al., 2019, section 4.1).

    Four residual blocks, each of three times [3x3 convolution, batch normalisation] with leaky ReLU of slope 0.1 and a
    shortcut of [1x1 convolution, batch normalisation], then 2x2 max-pooling. Then the mean over all positions (as in
    Tian et al., 2020) and a linear head. Without the DropBlock that MetaOptNet regularises with, which would make the
    inner loop random. Batch normalisation takes the statistics of the batch at hand, never running ones.
    """

    def __init__(self, ways: int, channels: int = 3, filters: int = 64):
        """ways: outputs of the head.  filters: of the first block; the others have 2.5, 5 and 10 times as many."""
        super().__init__()
        widths = [filters, filters * 5 // 2, filters * 5, filters * 10]
        self.blocks = nn.Sequential(*(_Block(n, m) for n, m in zip([channels, *widths], widths, strict=False)))
        self.head = nn.Linear(widths[-1], ways)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: (N, C, H, W) in [0, 1] -> logits (N, ways)."""
        features: torch.Tensor = self.blocks(x)
        logits: torch.Tensor = self.head(features.mean((2, 3)))
        return logits


class _Block(nn.Module):
    """x: (N, C, H, W) -> (N, filters, H // 2, W // 2); a side of one pixel stays as it is."""

    def __init__(self, channels: int, filters: int):
        super().__init__()
        inputs = [channels, filters, filters]
        self.convolutions = nn.ModuleList(nn.Conv2d(n, filters, 3, padding=1, bias=False) for n in inputs)
        self.norms = nn.ModuleList(nn.BatchNorm2d(filters, track_running_stats=False) for _ in inputs)
        self.shortcut = nn.Conv2d(channels, filters, 1, bias=False)
        self.shortcut_norm = nn.BatchNorm2d(filters, track_running_stats=False)
        for convolution in [*self.convolutions, self.shortcut]:
            nn.init.kaiming_normal_(convolution.weight, a=0.1, mode="fan_out", nonlinearity="leaky_relu")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        skipped = self.shortcut_norm(self.shortcut(x))
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            x = norm(convolution(x))
            x = x + skipped if norm is self.norms[-1] else x
            x = F.leaky_relu(x, 0.1)
        return F.max_pool2d(x, 2) if min(x.shape[-2:]) > 1 else x
