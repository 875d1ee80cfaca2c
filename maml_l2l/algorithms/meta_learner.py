"""What training, evaluation and prediction ask of a MAML engine; the engines differ only in how they adapt."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from maml_l2l.algorithms.scores import Scores, score
from maml_l2l.system.learn2learn_import import MAML
from maml_l2l.tasks.batch import TaskBatch


class MetaLearner(MAML):
    """learn2learn's `MAML` (same constructor, `clone()` and `adapt()` as they are) for batches of tasks.

    An engine is a subclass that implements `adapt_and_score`. The inner loss is the mean cross-entropy over the support
    set; the outer loss is its mean over the query set and the tasks (Finn et al., 2017, algorithm 2).
    """

    task_chunk: int | None = None
    """Tasks worked on at once; None leaves it to the engine."""

    inner_lrs: torch.nn.Parameter | None
    """Learned step sizes (inner steps, parameter tensors of the module); None: `lr` for all."""

    def __init__(self, model: torch.nn.Module, lr: float, **options):
        """See learn2learn's `MAML`."""
        super().__init__(model, lr, **options)
        self.register_parameter("inner_lrs", None)

    def learn_inner_lrs(self, steps: int) -> None:
        """Meta-learn a step size for each parameter tensor in each of `steps` inner steps, starting from `lr`.

        Whatever adapts for more steps takes the last ones again (LSLR: Antoniou et al., 2019, section 4).
        """
        tensors = len(list(self.module.parameters()))
        self.inner_lrs = torch.nn.Parameter(torch.full((steps, tensors), self.lr))

    def adapt_and_score(self, tasks: TaskBatch, steps: Sequence[int], normalisation: str = "batch") -> torch.Tensor:
        """Query logits (len(steps), T, ways * queries, ways) after each number of inner steps in `steps` (ascending).

        normalisation: `batch` scores all queries of a task as one batch; `support` normalises each query with the
        statistics of the support images alone (the backbone must take `statistics_from`).
        Under `torch.no_grad()` the inner loop still takes its gradients, but nothing leads back to the initial weights.
        """
        raise NotImplementedError

    def meta_gradient(self, tasks: TaskBatch, inner_steps: int, normalisation: str = "batch") -> Scores:
        """Set `.grad` of every parameter and step size to the meta-gradient of `tasks`; return how the tasks scored.

        That is the mean over tasks of the gradient of the query loss after `inner_steps` steps (Finn et al., 2017,
        equation 4). Works on `task_chunk` tasks at a time, which bounds the memory.
        """
        parameters = list(self.parameters())
        totals, parts = [torch.zeros_like(parameter) for parameter in parameters], []
        for chunk in self.chunks(tasks):
            gradients, scores = self._chunk_gradient(chunk, inner_steps, normalisation)
            torch._foreach_add_(totals, gradients)
            parts.append(scores)
        for parameter, total in zip(parameters, totals, strict=True):
            parameter.grad = total.div_(len(tasks))
        return Scores(*map(torch.cat, zip(*parts, strict=True)))

    def chunks(self, tasks: TaskBatch) -> Iterator[TaskBatch]:
        """`tasks` in parts of `task_chunk`, which bounds the memory that working on one takes."""
        return tasks.chunks(self.task_chunk or self._default_chunk(tasks))

    def _default_chunk(self, tasks: TaskBatch) -> int:
        return 1

    def _chunk_gradient(
        self, tasks: TaskBatch, inner_steps: int, normalisation: str
    ) -> tuple[Sequence[torch.Tensor], Scores]:
        """The sum over `tasks` of the gradient of the query loss, for every parameter in order, and the scores."""
        return self._gradient_of(self.adapt_and_score(tasks, [inner_steps], normalisation)[0], tasks)

    def _gradient_of(self, logits: torch.Tensor, tasks: TaskBatch) -> tuple[Sequence[torch.Tensor], Scores]:
        scores = score(logits, tasks.query_labels)
        gradients = torch.autograd.grad(
            scores.losses.sum(), list(self.parameters()), allow_unused=True, materialize_grads=True
        )
        return gradients, Scores(scores.losses.detach(), scores.accuracies)
