"""The fully connected network of the paper."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import nn


class MLP(nn.Module):
    """The network without convolutions of Finn et al. (2017, section 5.2), after Santoro et al. (2016).

    Layers of 256, 128, 64 and 64 units, each with batch normalisation and ReLU, then a linear head. Batch normalisation
    takes the statistics of the batch at hand, never running ones. A network is for one image size.
    """

    def __init__(self, ways: int, channels: int = 1, image_size: int = 28):
        """ways: outputs of the head.  image_size: height and width in pixels."""
        super().__init__()
        widths = [channels * image_size**2, 256, 128, 64, 64]
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise(widths):
            layers += [nn.Linear(inputs, outputs), nn.BatchNorm1d(outputs, track_running_stats=False), nn.ReLU()]
        self.hidden = nn.Sequential(*layers)
        self.head = nn.Linear(widths[-1], ways)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: (N, C, image_size, image_size) in [0, 1] -> logits (N, ways)."""
        logits: torch.Tensor = self.head(self.hidden(x.flatten(1)))
        return logits
