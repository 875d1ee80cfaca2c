"""Several networks that answer together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import nn

from maml_l2l.algorithms.meta_learner import MetaLearner
from maml_l2l.algorithms.scores import Scores
from maml_l2l.checkpoints.checkpoint import Checkpoint
from maml_l2l.config import changed_keys
from maml_l2l.system.errors import UserError
from maml_l2l.tasks.batch import TaskBatch

# What an evaluation reads images by: it reads them once, and all networks see the same.
_SAME_DATA = ("data.name", "data.ink", "data.image_size", "data.channels", "data.fit", "data.invert")


class Ensemble(nn.Module):
    """Learners that adapt to each task, each for itself; their outputs, before any softmax, are averaged.

    So does the released code of MAML++ (Antoniou et al., 2019) with its five best checkpoints.
    """

    def __init__(self, learners: Sequence[MetaLearner]):
        super().__init__()
        self.learners = nn.ModuleList(learners)

    def chunks(self, tasks: TaskBatch) -> Iterator[TaskBatch]:
        """See `MetaLearner.chunks`."""
        return self._first.chunks(tasks)

    def adapt_and_score(self, tasks: TaskBatch, steps: Sequence[int], normalisation: str = "batch") -> torch.Tensor:
        """(len(steps), T, queries of a task, ways) mean outputs; see `MetaLearner.adapt_and_score`."""
        outputs = [learner.adapt_and_score(tasks, steps, normalisation) for learner in self.learners]
        return torch.stack(outputs).mean(0)

    def score(self, outputs: torch.Tensor, targets: torch.Tensor) -> Scores:
        """See `MetaLearner.score`."""
        return self._first.score(outputs, targets)

    @property
    def _first(self) -> MetaLearner:
        return self.learners[0]


def check_fits(first: Checkpoint, other: Checkpoint, name: str, ways: int) -> None:
    """Raise `UserError`, with its `name`, where `other` cannot answer tasks of `ways` classes together with `first`.

    Its head has fewer outputs, its images were read in another way, or its classes were split in another way.
    """
    try:
        other.check_ways(ways)
    except UserError as error:
        raise UserError(f"{name}: {error}") from None
    changed = changed_keys(first.experiment, other.experiment)
    for key in _SAME_DATA:
        if key in changed:
            wanted, found = changed[key]
            raise UserError(
                f"{name} was trained with `{key}` {found!r}, and the first network with {wanted!r}, so they do not "
                "answer together. Name networks of the same data."
            )
    if other.split != first.split:
        raise UserError(
            f"{name} has another class split than the first network, so a class that one has never seen may have "
            "trained the other. Name networks of the same class split."
        )
