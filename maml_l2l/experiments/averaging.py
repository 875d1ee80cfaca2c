"""The weights averaged along training."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from maml_l2l.algorithms import MetaLearner


class WeightAverage:
    """The exponential moving average of all that the outer loop learns: weights, step sizes, transform, normalisations.

    It is PyTorch's `AveragedModel`: after the first meta-iteration the weights themselves, then after n + 1 of them
    d average + (1 - d) weights with d = min(decay, (1 + n) / (10 + n)), so that it soon forgets where it started from.
    """

    def __init__(self, learner: MetaLearner, decay: float):
        self._learned = dict(learner.named_parameters())
        self._own = nn.ParameterList(self._learned.values())  # the learner's, not copies

        @torch.no_grad()
        def average(averaged: Sequence[torch.Tensor], now: Sequence[torch.Tensor], count: torch.Tensor) -> None:
            n = count.item()
            torch._foreach_lerp_(averaged, now, 1 - min(decay, (1 + n) / (10 + n)))

        self._model = AveragedModel(self._own, multi_avg_fn=average)

    def update(self) -> None:
        """Take in the weights after one more meta-iteration."""
        self._model.update_parameters(self._own)

    def tensors(self) -> dict[str, torch.Tensor]:
        """The averages, by the names of the learner's parameters."""
        return {name: tensor.detach() for name, tensor in zip(self._learned, self._model.parameters(), strict=True)}

    @torch.no_grad()
    def restore(self, tensors: dict[str, torch.Tensor], count: int) -> None:
        """Go on from `tensors`, the averages after `count` meta-iterations."""
        for name, average in self.tensors().items():
            average.copy_(tensors[name])
        self._model.n_averaged.fill_(count)

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """The learner has the averages in place of its weights until the context ends; before any update its own."""
        if self._model.n_averaged == 0:
            yield
            return
        own = {name: parameter.detach().clone() for name, parameter in self._learned.items()}
        self._set(self.tensors())
        try:
            yield
        finally:
            self._set(own)

    @torch.no_grad()
    def _set(self, tensors: dict[str, torch.Tensor]) -> None:
        for name, parameter in self._learned.items():
            parameter.copy_(tensors[name])
