"""The reference engine: learn2learn's `clone()` and `adapt()`, one task after another."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn
from torch.func import functional_call

from maml_l2l.algorithms.checks import first_outputs
from maml_l2l.algorithms.clone import TaskClone
from maml_l2l.algorithms.heads import identity_head, prototype_head
from maml_l2l.algorithms.meta_learner import MetaLearner
from maml_l2l.backbones import first_images_normalise
from maml_l2l.system.learn2learn_import import clone_module


class LoopMAML(MetaLearner):
    """MAML as learn2learn runs it. Slow, and the one that every other engine is held against.

    >>> import maml_l2l, torch
    >>> learner = maml_l2l.LoopMAML(torch.nn.Linear(3, 2), lr=0.4)
    >>> images, labels = torch.rand(8, 2, 3), torch.arange(2).expand(8, 2)  # 8 tasks, 2 ways
    >>> tasks = maml_l2l.TaskBatch(images, labels, images, labels)
    >>> learner.adapt_and_score(tasks, steps=[0, 1]).shape  # (numbers of steps, tasks, queries, ways)
    torch.Size([2, 8, 2, 2])
    """

    def _adapt(
        self, support: torch.Tensor, labels: torch.Tensor, ways: int | None, steps: Sequence[int]
    ) -> Iterator[tuple[nn.Module, ...]]:
        return zip(
            *(self._adapt_to_task(*task, ways, steps) for task in zip(support, labels, strict=True)), strict=True
        )

    def _adapt_to_task(
        self, support: torch.Tensor, labels: torch.Tensor, ways: int | None, steps: Sequence[int]
    ) -> Iterator[nn.Module]:
        first_order = self.first_order or not torch.is_grad_enabled()
        with torch.enable_grad():
            learner = self._clone(first_order=first_order)
            if self.prototype_head:
                self._start_from_prototypes(learner, support, labels, ways)
        for step in range(steps[-1] + 1):
            if step in steps:
                yield learner.module
            if step < steps[-1]:
                with torch.enable_grad():
                    outputs = first_outputs(learner(support), ways)
                    learner.adapt(self.task_losses(outputs[None], labels[None]).sum())

    def _kept(self, networks: tuple[nn.Module, ...]) -> tuple[nn.Module, ...]:
        return tuple(clone_module(network) for network in networks)

    def _answers(
        self,
        networks: tuple[nn.Module, ...],
        support: torch.Tensor,
        query: torch.Tensor,
        ways: int | None,
        normalisation: str,
    ) -> torch.Tensor:
        answers = []
        for network, known, asked in zip(networks, support, query, strict=True):
            if normalisation == "batch":
                outputs = network(asked)
            else:
                with first_images_normalise(network, len(known), len(known) + len(asked)):
                    outputs = network(torch.cat([known, asked]))[len(known) :]
            answers.append(first_outputs(outputs, ways))
        return torch.stack(answers)

    def _start_from_prototypes(
        self, learner: TaskClone, support: torch.Tensor, labels: torch.Tensor, ways: int | None
    ) -> None:
        """Features of this network, not of its clone: inner gradients do not go through the prototypes."""
        weight = self.module.head.weight
        features = functional_call(self.module, identity_head(weight.shape[1], weight) | self.norms_at(0), (support,))
        head: Any = learner.module.head
        for name, value in prototype_head(features, labels, ways).items():
            head._parameters[name.removeprefix("head.")] = value.requires_grad_()  # where no feature does, this does
