"""The reference engine: learn2learn's `clone()` and `adapt()`, one task after another."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from maml_l2l.algorithms.meta_learner import MetaLearner
from maml_l2l.algorithms.scores import mean_cross_entropy
from maml_l2l.system.learn2learn_import import MAML, meta_sgd_update
from maml_l2l.tasks.batch import TaskBatch


class LoopMAML(MetaLearner):
    """MAML as learn2learn runs it. Slow, and the one that every other engine is held against."""

    def adapt_and_score(self, tasks: TaskBatch, steps: Sequence[int], normalisation: str = "batch") -> torch.Tensor:
        """See `MetaLearner.adapt_and_score`."""
        return torch.stack([self._one_task(task, steps, normalisation) for task in tasks.chunks(1)], dim=1)

    def _one_task(self, task: TaskBatch, steps: Sequence[int], normalisation: str) -> torch.Tensor:
        support, labels, query = task.support[0], task.support_labels[0], task.query[0]
        differentiable, first_order = torch.is_grad_enabled(), self.first_order or not torch.is_grad_enabled()
        scored = []
        with torch.enable_grad():
            learner = self.clone(first_order=first_order)
            for step in range(steps[-1] + 1):
                if step in steps:
                    with torch.set_grad_enabled(differentiable):
                        scored.append(_query_logits(learner, support, query, normalisation)[:, : task.ways])
                if step < steps[-1]:
                    loss = mean_cross_entropy(learner(support)[:, : task.ways], labels)
                    if self.inner_lrs is None:
                        learner.adapt(loss)
                    else:
                        inner_lrs = self.inner_lrs[min(step, len(self.inner_lrs) - 1)]
                        _adapt(learner, loss, inner_lrs if differentiable else inner_lrs.detach())
        return torch.stack(scored)


def _adapt(learner: MAML, loss: torch.Tensor, inner_lrs: torch.Tensor) -> None:
    """`learner.adapt(loss)` with a step size for each parameter tensor, by the update of learn2learn's `MetaSGD`."""
    second_order = not learner.first_order
    gradients = torch.autograd.grad(
        loss, list(learner.module.parameters()), create_graph=second_order, allow_unused=True, materialize_grads=True
    )
    meta_sgd_update(learner.module, inner_lrs, gradients)


def _query_logits(learner, support: torch.Tensor, query: torch.Tensor, normalisation: str) -> torch.Tensor:
    if normalisation == "batch":
        return learner(query)
    return learner(torch.cat([support, query]), statistics_from=len(support))[len(support) :]
