"""A typed batch of few-shot tasks: what engines take, whoever made it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields

import torch


@dataclass(frozen=True)
class TaskBatch:
    """T tasks of the same size, grouped by class within each task.

    support: (T, ways * shots, C, H, W) float in [0, 1].      support_labels: (T, ways * shots) int64 in [0, ways).
    query: (T, ways * queries, C, H, W) float in [0, 1].      query_labels: (T, ways * queries) int64 in [0, ways).
    """

    support: torch.Tensor
    support_labels: torch.Tensor
    query: torch.Tensor
    query_labels: torch.Tensor
    ways: int

    def __len__(self) -> int:
        """Number of tasks T."""
        return self.support.shape[0]

    def _map(self, function) -> TaskBatch:
        tensors = [getattr(self, field.name) for field in fields(self) if field.name != "ways"]
        return TaskBatch(*map(function, tensors), ways=self.ways)

    def chunks(self, size: int) -> Iterator[TaskBatch]:
        """The same tasks in order, at most `size` at a time."""
        for start in range(0, len(self), size):
            yield self._map(lambda tensor, start=start: tensor[start : start + size])

    def to(self, device: torch.device | None = None, dtype: torch.dtype | None = None) -> TaskBatch:
        """The same tasks on `device`, the images as `dtype`."""
        return self._map(lambda tensor: tensor.to(device, dtype if tensor.is_floating_point() else None))
