"""The reference engine: learn2learn's `clone()` and `adapt()`, one task after another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.func import functional_call

from maml_l2l.algorithms.clone import TaskClone
from maml_l2l.algorithms.heads import identity_head, prototype_head
from maml_l2l.algorithms.meta_learner import MetaLearner
from maml_l2l.backbones import first_images_normalise
from maml_l2l.tasks.batch import TaskBatch


class LoopMAML(MetaLearner):
    """MAML as learn2learn runs it. Slow, and the one that every other engine is held against.

    >>> import maml_l2l, torch
    >>> learner = maml_l2l.LoopMAML(torch.nn.Linear(3, 2), lr=0.4)
    >>> images, labels = torch.rand(8, 2, 3), torch.arange(2).expand(8, 2)  # 8 tasks, 2 ways
    >>> tasks = maml_l2l.TaskBatch(images, labels, images, labels)
    >>> learner.adapt_and_score(tasks, steps=[0, 1]).shape  # (numbers of steps, tasks, queries, ways)
    torch.Size([2, 8, 2, 2])
    """

    def _adapt_and_score(self, tasks: TaskBatch, steps: Sequence[int], normalisation: str) -> torch.Tensor:
        return torch.stack([self._one_task(task, steps, normalisation) for task in tasks.chunks(1)], dim=1)

    def _one_task(self, task: TaskBatch, steps: Sequence[int], normalisation: str) -> torch.Tensor:
        support, labels, query = task.support[0], task.support_labels[0], task.query[0]
        differentiable, first_order = torch.is_grad_enabled(), self.first_order or not torch.is_grad_enabled()
        scored = []
        with torch.enable_grad():
            learner = self.clone(first_order=first_order)
            if self.prototype_head:
                self._start_from_prototypes(learner, support, labels, task.ways)
            for step in range(steps[-1] + 1):
                if step in steps:
                    with torch.set_grad_enabled(differentiable):
                        scored.append(_query_outputs(learner, support, query, normalisation)[..., : task.ways])
                if step < steps[-1]:
                    outputs = learner(support)[..., : task.ways]
                    learner.adapt(self.task_losses(outputs[None], labels[None]).sum())
        return torch.stack(scored)

    def _start_from_prototypes(
        self, learner: TaskClone, support: torch.Tensor, labels: torch.Tensor, ways: int | None
    ) -> None:
        """Features of this network, not of its clone: inner gradients do not go through the prototypes."""
        weight = self.module.head.weight
        features = functional_call(self.module, identity_head(weight.shape[1], weight), (support,))
        head: Any = learner.module.head
        for name, value in prototype_head(features, labels, ways).items():
            head._parameters[name.removeprefix("head.")] = value


def _query_outputs(learner: TaskClone, support: torch.Tensor, query: torch.Tensor, normalisation: str) -> torch.Tensor:
    if normalisation == "batch":
        return learner(query)
    with first_images_normalise(learner.module, len(support)):
        return learner(torch.cat([support, query]))[len(support) :]
