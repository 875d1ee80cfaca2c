"""Tasks of features: each picture passes through a body that no task changes once, however many tasks hold it."""

from __future__ import annotations

import torch
from torch import nn

from maml_l2l.algorithms.features import features_of
from maml_l2l.tasks.batch import TaskBatch
from maml_l2l.tasks.stream import TaskStream

_IMAGES_AT_ONCE = 64


class FeatureTasks:
    """The tasks of `stream` with the features of `network` in place of images; see `head_learner`."""

    def __init__(self, network: nn.Module, stream: TaskStream, device: torch.device):
        self._network, self._stream, self._device = network, stream, device
        self._features: dict[int, torch.Tensor] = {}

    def batch(self, start: int, count: int) -> TaskBatch:
        """Tasks `start`, ..., `start + count - 1` of the stream: (T, n, width) for images."""
        drawn = self._stream.indices(start, count)
        new = [index for index in drawn.unique().tolist() if index not in self._features]
        for first in range(0, len(new), _IMAGES_AT_ONCE):
            part = new[first : first + _IMAGES_AT_ONCE]
            images = self._stream.images.pixels[part].to(self._device).float().div_(255)
            self._features.update(zip(part, features_of(self._network, images[None])[0], strict=True))
        features = torch.stack([self._features[index] for index in drawn.flatten().tolist()])
        return self._stream.grouped(features.unflatten(0, drawn.shape))
