"""What training, evaluation and prediction ask of a MAML engine; the engines differ only in how they adapt."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from maml_l2l.algorithms import checks
from maml_l2l.algorithms.adapted import AdaptedNetworks
from maml_l2l.algorithms.clone import TaskClone
from maml_l2l.algorithms.features import features_of, head_learner
from maml_l2l.algorithms.functional import plain_attention
from maml_l2l.algorithms.norms import NormsPerStep
from maml_l2l.algorithms.scores import Loss, Scores, task_losses, task_scores
from maml_l2l.algorithms.transforms import GradientTransform
from maml_l2l.system.errors import UserError
from maml_l2l.system.learn2learn_import import MAML, clone_module
from maml_l2l.tasks.batch import TaskBatch
from maml_l2l.tasks.checks import check_tensors, class_count


class MetaLearner(MAML):
    """learn2learn's `MAML` for batches of tasks; its `clone()` and `adapt()` use what was learned beside the weights.

    An engine is a subclass with `_adapt` and `_answers`. The inner loss is `loss` over the support set; the outer
    loss is its mean over the query set and the tasks (Finn et al., 2017, algorithm 2). Parameters that do not require
    gradients are frozen: no loop changes them.
    """

    task_chunk: int | None = None
    """Tasks worked on at once; None leaves it to the engine."""

    adapted: Sequence[str] = ("*",)
    """Patterns (`fnmatch`) of the names of the parameters that the inner loop adapts; the outer loop learns all."""

    prototype_head = False
    """Start the linear layer `head` of each task as the prototypes of its classes; see `prototype_head`."""

    step_weights: Sequence[float] | None = None
    """Weights of the query losses after inner step 1, 2, ... in the outer loss; None: that after the last alone."""

    inner_lrs: nn.Parameter | None
    """Learned step sizes (inner steps, parameter tensors of the module); None: `lr` for all."""

    transform: GradientTransform | None
    """What the gradients of the inner loop pass through before a step is taken; None: nothing."""

    norms: NormsPerStep | None
    """Scales and shifts of normalisation layers per inner step; None: the module's own, which adapt."""

    def __init__(
        self,
        model: nn.Module,
        lr: float,
        first_order: bool = False,
        allow_unused: bool | None = None,
        allow_nograd: bool = True,
        loss: Loss | None = None,
    ):
        """See learn2learn's `MAML`, but for `allow_nograd`, which is true here unless it is given.

        loss: `loss(outputs, targets)` of one task, (n, ...) and (n, ...), gives a scalar, for the inner and the outer
        loop. None: the mean cross-entropy, in nats.
        Raises `UserError` where the module keeps running statistics, which tasks would share, or has parameters
        without gradients that `allow_nograd=False` rules out.
        """
        checks.check_module(model, allow_nograd)
        super().__init__(model, lr, first_order, allow_unused, allow_nograd)
        self.loss = loss
        self.register_parameter("inner_lrs", None)
        self.transform = self.norms = None

    def __setattr__(self, name: str, value: Any) -> None:
        """Raises `UserError` where `value` is none that the attribute can have."""
        checks.check_setting(self, name, value)
        super().__setattr__(name, value)

    def learn_inner_lrs(self, steps: int) -> None:
        """Meta-learn a step size for each parameter tensor in each of `steps` inner steps, starting from `lr`.

        Whatever adapts for more steps takes the last ones again (LSLR: Antoniou et al., 2019, section 4).
        """
        checks.check_positive("steps", steps)
        parameters = list(self.module.parameters())
        self.inner_lrs = nn.Parameter(parameters[0].new_full((steps, len(parameters)), self.lr).detach())

    def learn_transform(self, transform: Callable[[torch.Tensor], nn.Module | None], linear: bool = False) -> None:
        """Meta-learn a transform of each parameter's gradient, as learn2learn's `GBML` does (Arnold et al., 2019).

        transform: makes a module, or None, for a parameter tensor, as those of `learn2learn.optim.transforms` do.
        linear: the modules are linear in the gradient, which saves the vectorized engine a gradient per step.
        """
        self.transform = GradientTransform(self.module, transform, linear)

    def learn_norms(self, steps: int) -> None:
        """Meta-learn a scale and shift of each normalisation layer for every number of inner steps, 0 to `steps`.

        The inner loop then adapts none of them (Antoniou et al., 2019, section 4, where the queries after step k share
        theirs with the support images before it; here with those after it). More steps take the last ones again.
        Raises `UserError` where the module has no such layer.
        """
        self.norms = NormsPerStep(self.module, steps)

    def norms_at(self, step: int) -> dict[str, torch.Tensor]:
        """The scales and shifts after `step` inner steps by their names, where there are some per step."""
        return {} if self.norms is None else self.norms.at(step)

    def clone(
        self, first_order: bool | None = None, allow_unused: bool | None = None, allow_nograd: bool | None = None
    ) -> TaskClone:
        """A copy of the module that `adapt(loss)` fits to one task, by the step sizes and transform of this learner.

        See learn2learn's `MAML.clone`: losses of the clone lead back to the parameters of this learner. Raises
        `UserError` where more than that is to be done: for a head of prototypes, and the implicit gradient.
        """
        checks.check_cloneable(self)
        return self._clone(first_order, allow_unused, allow_nograd)

    def _clone(
        self, first_order: bool | None = None, allow_unused: bool | None = None, allow_nograd: bool | None = None
    ) -> TaskClone:
        defaults = {"first_order": first_order, "allow_unused": allow_unused, "allow_nograd": allow_nograd}
        options = {name: getattr(self, name) if value is None else value for name, value in defaults.items()}
        return TaskClone(clone_module(self.module), self, **options)

    def adapted_names(self) -> list[str]:
        """The names of the module's parameters that the inner loop adapts, in order."""
        fixed = set() if self.norms is None else set(self.norms.names)
        own = ((name, parameter) for name, parameter in self.module.named_parameters() if name not in fixed)
        learned = [name for name, parameter in own if parameter.requires_grad]
        return [name for name in learned if any(fnmatchcase(name, pattern) for pattern in self.adapted)]

    def rates(self, step: int) -> torch.Tensor:
        """(parameter tensors,) the size of inner step `step` for each of the module's parameters."""
        if self.inner_lrs is not None:
            return self.inner_lrs[min(step, len(self.inner_lrs) - 1)]
        first = next(self.module.parameters())
        return torch.full((len(list(self.module.parameters())),), self.lr, dtype=first.dtype, device=first.device)

    def task_losses(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """outputs: (T, n, ...), targets: (T, n, ...) -> the loss of each task (T,)."""
        return task_losses(self.loss, outputs, targets)

    def score(self, outputs: torch.Tensor, targets: torch.Tensor) -> Scores:
        """outputs: (T, n, ...), targets: (T, n, ...) -> losses and accuracies (T,); see `Scores`."""
        return task_scores(self.loss, outputs, targets)

    @plain_attention()
    def adapt_and_score(self, tasks: TaskBatch, steps: Sequence[int], normalisation: str = "batch") -> torch.Tensor:
        """Query outputs (len(steps), T, queries of a task, ways) after each number of inner steps in `steps`.

        Where tasks are of unequal size, those that have fewer queries or ways are filled up with NaN. A network of your
        own may have outputs of any shape in place of the ways.
        steps: not negative, each greater than the one before.
        normalisation: `batch` scores all queries of a task as one batch; `support` normalises each query with the
        statistics of the support images alone (see `first_images_normalise`).
        Under `torch.no_grad()` the inner loop still takes its gradients, but nothing leads back to the initial weights.
        """
        checks.check_normalisation(normalisation)
        checks.check_each_step(self, steps)
        parts = [self._adapt_and_score(part, steps, normalisation) for part in tasks.chunks(len(tasks))]
        return torch.cat(_of_one_size(parts), dim=1)

    @plain_attention()
    def adapt_once(
        self, support: torch.Tensor, labels: torch.Tensor, ways: int | None, steps: Sequence[int]
    ) -> AdaptedNetworks:
        """The networks of T tasks after each number of inner steps in `steps`, for any queries to come.

        support: (T, n, ...).  labels: (T, n).  ways: see `TaskBatch`.  steps: see `adapt_and_score`.
        """
        checks.check_each_step(self, steps)
        check_tensors((support, labels, support, labels))
        ways = class_count(labels, labels, ways)
        head, network = head_learner(self), None
        if head is not None:
            network, support = self.module, features_of(self.module, support)
        learner = head or self
        adapted = [learner._kept(networks) for networks in learner._adapt(support, labels, ways, steps)]
        return AdaptedNetworks(learner, support, ways, adapted, network)

    def _adapt_and_score(self, tasks: TaskBatch, steps: Sequence[int], normalisation: str) -> torch.Tensor:
        support, query, ways, head = tasks.support, tasks.query, tasks.ways, head_learner(self)
        if head is not None:
            support, query = features_of(self.module, support), features_of(self.module, query)
        learner = head or self
        networks = learner._adapt(support, tasks.support_labels, ways, steps)
        return torch.stack([learner._answers(one, support, query, ways, normalisation) for one in networks])

    def _adapt(
        self, support: torch.Tensor, labels: torch.Tensor, ways: int | None, steps: Sequence[int]
    ) -> Iterator[Any]:
        """The networks of the tasks after each number of `steps`, each of which the next may change."""
        raise NotImplementedError

    def _kept(self, networks: Any) -> Any:
        """What `_adapt` gave, so that nothing changes it."""
        return networks

    def _answers(
        self, networks: Any, support: torch.Tensor, query: torch.Tensor, ways: int | None, normalisation: str
    ) -> torch.Tensor:
        """(T, n_query, ways) outputs of `networks`, one of those of `_adapt`."""
        raise NotImplementedError

    @plain_attention()
    def meta_gradient(self, tasks: TaskBatch, inner_steps: int, normalisation: str = "batch") -> Scores:
        """Set `.grad` of every parameter and step size to the meta-gradient of `tasks`; return how the tasks scored.

        That is the mean over tasks of the gradient of the query loss after `inner_steps` steps (Finn et al., 2017,
        equation 4). Works on `task_chunk` tasks at a time, which bounds the memory.
        """
        checks.check_normalisation(normalisation)
        checks.check_steps(self, inner_steps)
        if self.step_weights is not None and len(self.step_weights) != inner_steps:
            raise UserError(f"there are {len(self.step_weights)} step_weights for {inner_steps} inner steps.")
        parameters = [parameter for parameter in self.parameters() if parameter.requires_grad]
        totals, parts = [torch.zeros_like(parameter) for parameter in parameters], []
        for chunk in self.chunks(tasks):
            gradients, scores = self._chunk_gradient(chunk, inner_steps, normalisation)
            torch._foreach_add_(totals, list(gradients))
            parts.append(scores)
        for parameter, total in zip(parameters, totals, strict=True):
            parameter.grad = total.div_(len(tasks))
        return Scores(*map(torch.cat, zip(*parts, strict=True)))

    def chunks(self, tasks: TaskBatch) -> Iterator[TaskBatch]:
        """`tasks` in parts of `task_chunk`, which bounds the memory that working on one takes."""
        return tasks.chunks(self.task_chunk or self._default_chunk(tasks))

    def _default_chunk(self, tasks: TaskBatch) -> int:
        return 1

    @torch.enable_grad()
    def _chunk_gradient(
        self, tasks: TaskBatch, inner_steps: int, normalisation: str
    ) -> tuple[Sequence[torch.Tensor], Scores]:
        """The sum over `tasks` of the gradient of the query loss, for every parameter that learns, and the scores."""
        weights = self.step_weights or [1.0]
        counted = range(inner_steps - len(weights) + 1, inner_steps + 1)
        outputs = self._adapt_and_score(tasks, counted, normalisation)
        scores = [self.score(answers, tasks.query_labels) for answers in outputs]
        loss = torch.stack([w * part.losses.sum() for w, part in zip(weights, scores, strict=True)]).sum()
        parameters = [parameter for parameter in self.parameters() if parameter.requires_grad]
        gradients = torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)
        return gradients, Scores(scores[-1].losses.detach(), scores[-1].accuracies)


def _of_one_size(parts: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """(steps, T, n, ...) each -> the same with NaN for what a part has fewer of than another, behind the tasks."""
    most = [max(sizes) for sizes in zip(*(part.shape for part in parts), strict=True)]
    lacking = ([(0, full - size) for full, size in zip(most, part.shape, strict=True)][2:] for part in parts)
    padding = (itertools.chain.from_iterable(reversed(of_part)) for of_part in lacking)
    return [F.pad(part, tuple(around), value=torch.nan) for part, around in zip(parts, padding, strict=True)]
