"""How well queries were answered: losses, accuracies, and their interval over tasks."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch.func import vmap
from torch.nn import functional as F

from maml_l2l.algorithms.checks import check_scalars

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


class Scores(NamedTuple):
    """Over the query images of each task. losses: (T,) mean cross-entropy in nats. accuracies: (T,) in [0, 1]."""

    losses: torch.Tensor
    accuracies: torch.Tensor


def mean_cross_entropy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """logits: (..., images, ways), labels: (..., images) int64 -> mean over images, (...), in nats."""
    losses = F.cross_entropy(logits.flatten(0, -2), labels.flatten(), reduction="none")
    return losses.view(labels.shape).mean(-1)


def score(logits: torch.Tensor, labels: torch.Tensor) -> Scores:
    """logits: (..., images, ways), labels: (..., images) int64 -> losses and accuracies (...)."""
    losses = mean_cross_entropy(logits, labels)
    return Scores(losses, (logits.argmax(-1) == labels).to(losses.dtype).mean(-1))


def task_losses(loss: Loss | None, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """outputs: (T, n, ...), targets: (T, n, ...) -> `loss` of each task (T,); None: the mean cross-entropy in nats.

    Raises `UserError` where `loss` gives more than a scalar.
    """
    if loss is None:
        return mean_cross_entropy(*_flat(outputs, targets))
    losses = vmap(loss)(outputs, targets)
    check_scalars(losses)
    return losses


def task_scores(loss: Loss | None, outputs: torch.Tensor, targets: torch.Tensor) -> Scores:
    """As `task_losses`, with accuracies: NaN with a loss of one's own, but where targets are a class per image."""
    if loss is None:
        return score(*_flat(outputs, targets))
    losses = task_losses(loss, outputs, targets)
    if targets.dtype != torch.int64 or targets.ndim != 2 or outputs.shape[:-1] != targets.shape:
        return Scores(losses, torch.full_like(losses, torch.nan))
    return Scores(losses, (outputs.argmax(-1) == targets).to(losses.dtype).mean(-1))


def _flat(outputs: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(T, all outputs of a task, classes), (T, all its targets): an image may have several, as a text has words."""
    return outputs.flatten(1, -2), targets.flatten(1)


@dataclass(frozen=True)
class Evaluation:
    """Scores of the same tasks after each number of inner steps in `steps`.

    losses: (len(steps), tasks) mean cross-entropy over the queries.  accuracies: (len(steps), tasks), in percent.
    classes: how many the tasks are drawn from, if that is known.  seen_classes: those of them that trained a network.
    """

    steps: tuple[int, ...]
    losses: torch.Tensor
    accuracies: torch.Tensor
    classes: int | None = None
    seen_classes: int = 0

    def mean(self) -> list[float]:
        """Mean accuracy over tasks in percent, for each number of steps."""
        return self.accuracies.mean(1).tolist()

    def ci95(self) -> list[float]:
        """Half the 95 % confidence interval of the mean over tasks, in percent points (normal approximation)."""
        return (1.96 * self.accuracies.std(1) / math.sqrt(self.accuracies.shape[1])).tolist()
