"""The fast engine: all tasks of a chunk adapt at once, each with its own copy of the weights."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch.func import grad, vjp, vmap

from maml_l2l.algorithms import adjoint
from maml_l2l.algorithms.adjoint import Parameters, Problem, add_in_place, for_each_task
from maml_l2l.algorithms.compiling import CompiledPieces
from maml_l2l.algorithms.functional import call_with, other_names
from maml_l2l.algorithms.heads import WEIGHT, identity_head, prototype_head
from maml_l2l.algorithms.meta_learner import Loss, MetaLearner
from maml_l2l.algorithms.scores import Scores
from maml_l2l.algorithms.transforms import transformed
from maml_l2l.backbones import first_images_normalise
from maml_l2l.system.errors import UserError
from maml_l2l.tasks.batch import TaskBatch

# Support images of a chunk on a CPU, the best of 25 to 160 at 5 and 20 ways: compiled code gains from the cache, the
# other from fewer and larger operations. A GPU wants all there is; this bounds its memory.
_IMAGES_COMPILED, _IMAGES_UNCOMPILED, _IMAGES_GPU = 50, 100, 800

_RATES = "rates"  # in phi, beside the parameters of the transform


class VectorizedMAML(MetaLearner):
    """MAML over batches of tasks, with the gradients of `LoopMAML` and without its loop over tasks.

    Works for any module without state that changes in `forward`, through `torch.func`; `adjoint` has the equations of
    the meta-gradient. A module may offer a formulation that batches well, as the methods `task_parameters` (a
    rearrangement of its parameters) and `forward_tasks`; see `Conv4`.

    >>> import maml_l2l, torch
    >>> learner = maml_l2l.VectorizedMAML(torch.nn.Linear(3, 2), lr=0.4)
    >>> images, labels = torch.rand(8, 2, 3), torch.arange(2).expand(8, 2)  # 8 tasks, 2 ways
    >>> scores = learner.meta_gradient(maml_l2l.TaskBatch(images, labels, images, labels), inner_steps=1)
    >>> scores.losses.shape, learner.module.weight.grad.shape
    (torch.Size([8]), torch.Size([2, 3]))
    """

    recompute = False
    """Keep every sqrt(K)-th of the K inner steps' weights only: less memory, one more gradient per step."""

    compiled = False
    """Compile the pieces of the meta-gradient for the first chunk's shapes; whatever has others runs as it is."""

    def __init__(
        self,
        model: torch.nn.Module,
        lr: float,
        first_order: bool = False,
        allow_unused: bool | None = None,
        allow_nograd: bool = True,
        loss: Loss | None = None,
    ):
        """See `MetaLearner`. Raises `UserError` for `allow_unused=False`, too: unused parameters are not looked for."""
        super().__init__(model, lr, first_order, allow_unused, allow_nograd, loss)
        if not self.allow_unused:
            raise UserError("VectorizedMAML does not look for unused parameters: leave allow_unused=False to LoopMAML.")
        self._pieces, self._moving, self._others = CompiledPieces(), set[str](), other_names(model)

    def _adapt(
        self, support: torch.Tensor, labels: torch.Tensor, ways: int | None, steps: Sequence[int]
    ) -> Iterator[tuple[Parameters, Parameters]]:
        differentiable, self._moving = torch.is_grad_enabled(), set(self.adapted_names())
        task = support.contiguous(), labels.contiguous(), ways
        theta, eta = self._run("begin", dict(self.module.named_parameters()), *task)
        for step in range(steps[-1] + 1):
            if step in steps:
                yield theta, eta
            if step < steps[-1]:
                if differentiable:
                    theta = self._differentiable_step(theta, eta, self._phi(step), *task)
                else:
                    theta, _ = self._run("step", theta, eta, self._phi(step), *task)

    def _answers(
        self,
        networks: tuple[Parameters, Parameters],
        support: torch.Tensor,
        query: torch.Tensor,
        ways: int | None,
        normalisation: str,
    ) -> torch.Tensor:
        return self._run("outputs", *networks, support.contiguous(), query.contiguous(), ways, normalisation)

    def _differentiable_step(self, theta: Parameters, eta: Parameters, phi: Parameters, *support: Any) -> Parameters:
        """For `autograd` to differentiate, as a loss of the caller's own on the outputs may want."""
        with torch.set_grad_enabled(not self.first_order):
            gradients = grad(self._problem(*support).support_loss)(theta, eta)
        return self._update(theta, gradients, phi)

    @torch.no_grad()
    def _chunk_gradient(
        self, tasks: TaskBatch, inner_steps: int, normalisation: str
    ) -> tuple[Sequence[torch.Tensor], Scores]:
        support = tasks.support.contiguous(), tasks.support_labels.contiguous(), tasks.ways
        query = tasks.query.contiguous(), tasks.query_labels.contiguous(), normalisation
        self._moving, shared = set(self.adapted_names()), dict(self.module.named_parameters())
        theta, eta = self._run("begin", shared, *support)
        totals = {name: torch.zeros_like(parameter) for name, parameter in self.named_parameters()}
        d_eta = {name: torch.zeros_like(value) for name, value in eta.items()}
        found: list[Scores] = []

        def forward(k: int, theta: Parameters) -> tuple[Parameters, Parameters | None]:
            following, gradients = self._run("step", theta, eta, self._phi(k), *support)
            return following, gradients if self.first_order and self._learns else None

        def at_end(theta: Parameters) -> Parameters:
            adjoint_, part, scores = self._run("query", theta, eta, *support, *query)
            add_in_place(d_eta, part)
            found.append(scores)
            return adjoint_

        def backward(k: int, theta: Parameters, gradients: Parameters | None, following: Parameters) -> Parameters:
            arguments = theta, gradients, following, eta, self._phi(k), *support
            adjoint_, part, d_phi = self._run("step_back", *arguments)
            add_in_place(d_eta, part)
            self._add_phi(totals, d_phi, k)
            return adjoint_

        first = adjoint.sweep(theta, inner_steps, forward, at_end, backward, self.recompute)
        pulled = self._run("pull_back", shared, first, d_eta, *support)
        add_in_place(totals, {f"module.{name}": gradient for name, gradient in pulled.items()})
        self._pieces.announce()
        return [totals[name] for name, parameter in self.named_parameters() if parameter.requires_grad], found[0]

    def _run(self, piece: str, *arguments: Any) -> Any:
        """Call the method `_{piece}`, compiled where that is wanted and can be had."""
        function = getattr(self, f"_{piece}")
        trivial = piece in ("begin", "pull_back") and not self.prototype_head
        inductive = arguments[-1] == "support" and not self._batches_itself
        with first_images_normalise(self.module, arguments[2].shape[1] if inductive else None):
            if not self.compiled or trivial or torch.is_grad_enabled():
                return function(*arguments)
            return self._pieces.run(piece, function, arguments)

    # The pieces: functions of their arguments alone, where `support` stands for images, labels and ways.

    def _begin(
        self, shared: Parameters, support: torch.Tensor, labels: torch.Tensor, ways: int | None
    ) -> tuple[Parameters, Parameters]:
        """theta_0, contiguous, and eta, from the parameters of the module."""
        arranged = self.module.task_parameters(shared) if self._batches_itself else shared
        eta = {name: value for name, value in arranged.items() if name not in self._moving}
        theta = {name: for_each_task(len(support), value) for name, value in arranged.items() if name in self._moving}
        if self.prototype_head:
            identity = identity_head(shared[WEIGHT].shape[1], shared[WEIGHT])
            eta = {name: value for name, value in eta.items() if name not in identity}
            head = {name: for_each_task(len(support), value) for name, value in identity.items()}
            theta |= prototype_head(self._forward(theta | head, eta, support, None), labels, ways)
        return theta, eta

    def _pull_back(self, shared: Parameters, d_theta: Parameters, d_eta: Parameters, *support: Any) -> Parameters:
        """What the gradients for theta_0 and eta are for the parameters of the module."""
        pull_back = vjp(lambda shared: self._begin(shared, *support), shared)[1]
        return pull_back((d_theta, d_eta))[0]

    def _step(self, theta: Parameters, eta: Parameters, phi: Parameters, *support: Any) -> tuple[Any, ...]:
        return adjoint.step(self._problem(*support), theta, eta, phi)

    def _step_back(
        self,
        theta: Parameters,
        gradients: Parameters | None,
        following: Parameters,
        eta: Parameters,
        phi: Parameters,
        *support: Any,
    ) -> tuple[Any, ...]:
        return adjoint.step_back(self._problem(*support), theta, gradients, following, eta, phi)

    def _query(
        self,
        theta: Parameters,
        eta: Parameters,
        support: torch.Tensor,
        _labels: torch.Tensor,
        ways: int | None,
        query: torch.Tensor,
        query_labels: torch.Tensor,
        normalisation: str,
    ) -> tuple[Parameters, Parameters, Scores]:
        """The gradients of the query loss for theta_K and eta, and the scores."""

        def loss(theta: Parameters, eta: Parameters) -> tuple[torch.Tensor, Scores]:
            outputs = self._outputs(theta, eta, support, query, ways, normalisation)
            scores = self.score(outputs, query_labels)
            return scores.losses.sum(), scores

        (d_theta, d_eta), scores = grad(loss, argnums=(0, 1), has_aux=True)(theta, eta)
        return d_theta, d_eta, scores

    def _outputs(
        self,
        theta: Parameters,
        eta: Parameters,
        support: torch.Tensor,
        query: torch.Tensor,
        ways: int | None,
        normalisation: str,
    ) -> torch.Tensor:
        """(T, n_query, ways) of the queries."""
        if normalisation == "batch":
            return self._forward(theta, eta, query, ways)
        images, count = torch.cat([support, query], dim=1), support.shape[1]
        return self._forward(theta, eta, images, ways, first=count)[:, count:]

    def _problem(self, support: torch.Tensor, labels: torch.Tensor, ways: int | None) -> Problem:
        def support_loss(theta: Parameters, eta: Parameters) -> torch.Tensor:
            # Tasks share none of theta, so the gradient of the sum of their losses is each task's own gradient.
            return self.task_losses(self._forward(theta, eta, support, ways), labels).sum()

        linear = self.transform is None or self.transform.linear
        return Problem(support_loss, self._update, linear, self.first_order, self._learns)

    def _forward(
        self, theta: Parameters, eta: Parameters, images: torch.Tensor, ways: int | None, first: int | None = None
    ) -> torch.Tensor:
        """images: (T, n, ...) -> outputs (T, n, ...), `ways` of them.  first: for `forward_tasks` alone; see `_run`."""
        if self._batches_itself:
            shared = {name: value.expand(len(images), *value.shape) for name, value in eta.items()}
            outputs = self.module.forward_tasks(theta | shared, images, first)
        else:
            each = vmap(lambda theta, x: call_with(self.module, theta | eta, self._others, x), randomness="different")
            outputs = each(theta, images)
        return outputs[..., :ways] if ways is not None else outputs

    def _update(self, theta: Parameters, gradients: Parameters, phi: Parameters) -> Parameters:
        """U: Finn et al. (2017), equation 1, with a step size per tensor and the transform where they are learned."""
        names = [name for name, _ in self.module.named_parameters()]
        rates = dict(zip(names, phi[_RATES].unbind(), strict=True))
        moving = {name: gradient for name, gradient in gradients.items() if name in self._moving}
        if self.transform is not None:
            learned = {name: value for name, value in phi.items() if name != _RATES}
            moving = vmap(partial(transformed, self.transform, learned, self.module))(moving)
        return {n: value - rates[n] * moving[n] if n in moving else value for n, value in theta.items()}

    @property
    def _batches_itself(self) -> bool:
        return hasattr(self.module, "forward_tasks")

    @property
    def _learns(self) -> bool:
        return self.inner_lrs is not None or self.transform is not None

    def _phi(self, step: int) -> Parameters:
        learned = {} if self.transform is None else dict(self.transform.named_parameters())
        return {_RATES: self.rates(step), **learned}

    def _add_phi(self, totals: Parameters, d_phi: Parameters, step: int) -> None:
        if self.inner_lrs is not None:
            totals["inner_lrs"][min(step, len(self.inner_lrs) - 1)] += d_phi[_RATES]
        add_in_place(totals, {f"transform.{name}": gradient for name, gradient in d_phi.items() if name != _RATES})

    def _default_chunk(self, tasks: TaskBatch) -> int:
        """So many tasks that their activations stay near the cache, and if possible a divisor of their number."""
        images = _IMAGES_COMPILED if self.compiled else _IMAGES_UNCOMPILED
        if tasks.support.is_cuda:
            images = _IMAGES_GPU
        most = min(len(tasks), max(1, images // tasks.support.shape[1]))
        divisor = max(size for size in range(1, most + 1) if len(tasks) % size == 0)
        return divisor if 2 * divisor > most else most
