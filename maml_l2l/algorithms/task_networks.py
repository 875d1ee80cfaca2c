"""The networks of a batch of tasks, as functions of nothing but their arguments."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch.func import grad, vjp, vmap

from maml_l2l.algorithms import adjoint
from maml_l2l.algorithms.adjoint import Parameters, Problem, for_each_task
from maml_l2l.algorithms.checks import first_outputs
from maml_l2l.algorithms.functional import call_with, draw_from, in_precision
from maml_l2l.algorithms.heads import WEIGHT, identity_head, prototype_head
from maml_l2l.algorithms.meta_learner import MetaLearner
from maml_l2l.algorithms.scores import Scores
from maml_l2l.algorithms.transforms import transformed

RATES = "rates"  # in phi, beside the parameters of the transform


class TaskNetworks(MetaLearner):
    """What `VectorizedMAML` differentiates and compiles: forward pass, losses and update of T tasks at once.

    theta: what the tasks adapt, each (T, ...).  eta: what their networks share.  phi: what the update learns. In the
    signatures `*support` stands for images, labels and ways.
    """

    gradient = "second"
    """Which meta-gradient: `second`, `implicit`, `reptile` or `finite_difference`; with `first_order` it is `first`."""

    proximal = 2.0
    """lambda of `implicit` (Rajeswaran et al., 2019): the inner loss has (lambda / 2) |theta - theta_0|^2 beside."""

    _moving: set[str]
    """The names of the parameters that adapt: `adapted_names()`, looked up once per call."""

    _others: dict[str, str]
    """See `call_with`."""

    _replayed: list[torch.Tensor] | None = None
    """What every support loss draws its random numbers from: those of one inner step have one mask of dropout."""

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

    def _step(
        self, theta: Parameters, eta: Parameters, phi: Parameters, anchor: Parameters | None, *support: Any
    ) -> tuple[Any, ...]:
        """(theta_{k+1}, g_k).  anchor: what the implicit gradient's inner loop is pulled to."""
        return adjoint.step(self._problem(anchor, *support), theta, eta, phi)

    def _step_back(
        self,
        theta: Parameters,
        gradients: Parameters | None,
        following: Parameters,
        eta: Parameters,
        phi: Parameters,
        *support: Any,
    ) -> tuple[Any, ...]:
        return adjoint.step_back(self._problem(None, *support), theta, gradients, following, eta, phi)

    def _turn(
        self,
        theta: Parameters,
        others: tuple[Parameters, Parameters, Parameters],
        support: torch.Tensor,
        labels: torch.Tensor,
        ways: int | None,
        *query: Any,
    ) -> tuple[Any, ...]:
        """others: eta, phi and eta at the end -> (lambda_{K-1}, d eta, d phi, (d eta at the end, scores))."""
        eta, phi, at_end = others

        def query_gradient(theta: Parameters) -> tuple[Parameters, Any]:
            adjoint_, *besides = self._query(theta, at_end, support, labels, ways, *query)
            return adjoint_, besides

        return adjoint.turn(self._problem(None, support, labels, ways), query_gradient, theta, eta, phi)

    def _product(self, theta: Parameters, eta: Parameters, b: Parameters, *support: Any) -> tuple[Any, ...]:
        """H b and d eta, without the pull."""
        return adjoint.exact_product(self._problem(None, *support).support_loss, theta, eta, b)[1:]

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
        """The gradients of the query loss for theta and eta, and the scores."""

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

    def _problem(
        self, anchor: Parameters | None, support: torch.Tensor, labels: torch.Tensor, ways: int | None
    ) -> Problem:
        def support_loss(theta: Parameters, eta: Parameters) -> torch.Tensor:
            if self._replayed is not None and not torch.compiler.is_compiling():
                draw_from(self._replayed, support.device)
            # Finite differences ask in float64, of a network that may be in float32.
            dtype = next(iter(theta.values())).dtype
            images, targets = in_precision(dtype, support), in_precision(dtype, labels)
            if dtype != next(self.module.parameters()).dtype:
                eta = eta | {name: in_precision(dtype, value) for name, value in self.module.named_buffers()}
            # Tasks share none of theta, so the gradient of the sum of their losses is each task's own gradient.
            loss = self.task_losses(self._forward(theta, eta, images, ways), targets).sum()
            if anchor is None:
                return loss
            distances = [(value - anchor[name]).square().sum() for name, value in theta.items()]
            return loss + self.proximal / 2 * torch.stack(distances).sum()

        products = {"second": adjoint.exact_product, "finite_difference": adjoint.product_by_differences}
        product = None if self.first_order else products.get(self.gradient)
        linear = self.transform is None or self.transform.linear
        return Problem(support_loss, self._update, linear, self._learns, product)

    def _forward(
        self, theta: Parameters, eta: Parameters, images: torch.Tensor, ways: int | None, first: int | None = None
    ) -> torch.Tensor:
        """images: (T, n, ...) -> outputs (T, n, ...), `ways` of them.  first: for `forward_tasks` alone; see `run`."""
        if self._batches_itself:
            shared = {name: value.expand(len(images), *value.shape) for name, value in eta.items()}
            outputs = self.module.forward_tasks(theta | shared, images, first)
        else:
            each = vmap(lambda theta, x: call_with(self.module, theta | eta, self._others, x), randomness="different")
            outputs = each(theta, images)
        return first_outputs(outputs, ways)

    def _update(self, theta: Parameters, gradients: Parameters, phi: Parameters) -> Parameters:
        """U: Finn et al. (2017), equation 1, with a step size per tensor and the transform where they are learned."""
        names = [name for name, _ in self.module.named_parameters()]
        rates = dict(zip(names, phi[RATES].unbind(), strict=True))
        moving = {name: gradient for name, gradient in gradients.items() if name in self._moving}
        if self.transform is not None:
            learned = {name: value for name, value in phi.items() if name != RATES}
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
        return {RATES: self.rates(step), **learned}

    def _shared(self) -> Parameters:
        """The parameters of the module at theta_0."""
        return self._eta(dict(self.module.named_parameters()), 0)

    def _eta(self, eta: Parameters, step: int) -> Parameters:
        """`eta` at theta_k, k = `step`: with its scales and shifts, where there are some per step."""
        return eta | self.norms_at(step)
