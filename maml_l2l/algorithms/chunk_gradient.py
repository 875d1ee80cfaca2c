"""The meta-gradient of one chunk of tasks: the pieces of the vectorized engine, put together."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from maml_l2l.algorithms import adjoint
from maml_l2l.algorithms.adjoint import Parameters, add_in_place
from maml_l2l.algorithms.functional import draw_from, random_state
from maml_l2l.algorithms.scores import Scores
from maml_l2l.algorithms.task_networks import RATES
from maml_l2l.tasks.batch import TaskBatch

if TYPE_CHECKING:
    from maml_l2l.algorithms.vectorized import VectorizedMAML


class ChunkGradient:
    """Adds up what a chunk of tasks gives to the gradient of everything that `learner` learns.

    totals: by the names of the learner's parameters, summed over the tasks.  scores: of the queries at theta_K.
    """

    scores: Scores

    def __init__(self, learner: VectorizedMAML, tasks: TaskBatch, inner_steps: int, normalisation: str):
        self.learner, self.steps = learner, inner_steps
        self.support = tasks.support.contiguous(), tasks.support_labels.contiguous(), tasks.ways
        self.query = tasks.query.contiguous(), tasks.query_labels.contiguous(), normalisation
        self.totals = {name: torch.zeros_like(parameter) for name, parameter in learner.named_parameters()}
        self.weights = learner.step_weights or [*[0.0] * (inner_steps - 1), 1.0]
        self._states: dict[int | str, list[torch.Tensor]] = {}

    def run(self) -> None:
        """Fill `totals` and `scores`."""
        learner, shared = self.learner, self.learner._shared()
        self.start, self.eta = self._run("start", "begin", shared, *self.support)
        self.d_eta = {name: torch.zeros_like(value) for name, value in self.eta.items()}
        ways: dict[str, Callable[[], Parameters]] = {"implicit": self._implicit, "reptile": self._displacement}
        first = self._sweep() if learner.first_order else ways.get(learner.gradient, self._sweep)()
        pulled = self._run("start", "pull_back", shared, first, self.d_eta, *self.support)
        for name, gradient in pulled.items():
            self._add(name, gradient, 0)

    def _run(self, place: int | str, piece: str, *arguments: Any) -> Any:
        """A piece of the learner, which draws the random numbers that the first piece at `place` drew.

        place: k of the theta_k that the piece is at, `start` or `end`.  Without this a network with dropout would be
        another one on the way back.
        """
        learner, device = self.learner, self.support[0].device
        now = random_state(device)
        known = place in self._states
        learner._replayed = self._states.setdefault(place, now)
        try:
            if known:
                draw_from(learner._replayed, device)
            return learner.run(piece, *arguments)
        finally:
            learner._replayed = None
            if known:
                draw_from(now, device)

    def _sweep(self) -> Parameters:
        learner = self.learner
        if self.steps == 0 or (learner.first_order and not learner._learns and not any(self.weights[:-1])):
            return self._at_end(self._adapted())  # lambda_0 = lambda_K: there is nothing to go back for
        recompute = learner.recompute
        return adjoint.sweep(self.start, self.steps - 1, self._forward, self._turn, self._backward, recompute)

    def _forward(self, k: int, theta: Parameters) -> tuple[Parameters, Parameters | None]:
        learner, anchor = self.learner, self.start if self.learner._pulled else None
        following, gradients = self._run(k, "step", theta, self._eta(k), learner._phi(k), anchor, *self.support)
        return following, gradients if learner.first_order and learner._learns else None

    def _at_end(self, theta: Parameters) -> Parameters:
        adjoint_, self.scores = self._query_gradient(self.steps, theta)
        return adjoint_

    def _turn(self, theta: Parameters) -> Parameters:
        """The last step, there and back: theta_{K-1} -> lambda_{K-1}, all of it times w_K."""
        k, learner = self.steps - 1, self.learner
        others = self._eta(k), learner._phi(k), self._eta(k + 1)
        adjoint_, d_eta, d_phi, (at_end, self.scores) = self._run(k, "turn", theta, others, *self.support, *self.query)
        adjoint_, d_eta, d_phi, at_end = (self._weighted(k + 1, part) for part in (adjoint_, d_eta, d_phi, at_end))
        self._add_eta(at_end, k + 1)
        return self._arrived(k, theta, adjoint_, d_eta, d_phi)

    def _backward(self, k: int, theta: Parameters, gradients: Parameters | None, following: Parameters) -> Parameters:
        phi = self.learner._phi(k)
        arguments = theta, gradients, following, self._eta(k), phi, *self.support
        return self._arrived(k, theta, *self._run(k, "step_back", *arguments))

    def _arrived(
        self, k: int, theta: Parameters, adjoint_: Parameters, d_eta: Parameters, d_phi: Parameters
    ) -> Parameters:
        """lambda_k, with the gradient of a query loss that counts at theta_k, too; adds up the others."""
        self._add_eta(d_eta, k)
        self._add_phi(d_phi, k)
        if k > 0 and self.weights[k - 1]:
            add_in_place(adjoint_, self._query_gradient(k, theta)[0])
        return adjoint_

    def _query_gradient(self, k: int, theta: Parameters) -> tuple[Parameters, Scores]:
        """w_k times the gradient of the query loss at theta_k; that for eta goes where it belongs."""
        d_theta, d_eta, scores = self.learner.run("query", theta, self._eta(k), *self.support, *self.query)
        self._add_eta(self._weighted(k, d_eta), k)
        return self._weighted(k, d_theta), scores

    def _weighted(self, k: int, part: Parameters) -> Parameters:
        """w_k times each of `part`."""
        weight = self.weights[k - 1]
        return part if weight == 1 else {name: weight * value for name, value in part.items()}

    def _implicit(self) -> Parameters:
        """v of (I + H / lambda) v = grad L_query(theta_K), for theta_0 (Rajeswaran et al., 2019, equation 6).

        The adapted weights are taken for the minimum of the inner loss, which shifts with eta by -(H + lambda I)^-1
        times the mixed derivative: hence d eta.
        """
        learner, theta, strength = self.learner, self._adapted(), self.learner.proximal
        right = self._at_end(theta)

        def apply(b: Parameters) -> Parameters:
            product, _ = self._run("end", "product", theta, self.eta, b, *self.support)
            return {name: value + product[name] / strength for name, value in b.items()}

        solution = adjoint.conjugate_gradients(apply, right, learner.cg_steps)
        _, mixed = self._run("end", "product", theta, self.eta, solution, *self.support)
        self._add_eta({name: -value / strength for name, value in mixed.items()}, 0)
        return solution

    def _displacement(self) -> Parameters:
        """(theta_0 - theta_K) / alpha (Nichol et al., 2018, section 5)."""
        learner, theta, (query, labels, normalisation) = self.learner, self._adapted(), self.query
        support, _, ways = self.support
        outputs = learner.run("outputs", theta, self.eta, support, query, ways, normalisation)
        self.scores = learner.score(outputs, labels)
        return {name: (value - theta[name]) / learner.lr for name, value in self.start.items()}

    def _adapted(self) -> Parameters:
        theta = self.start
        for k in range(self.steps):
            theta, _ = self._forward(k, theta)
        return theta

    def _eta(self, k: int) -> Parameters:
        return self.learner._eta(self.eta, k)

    def _add_eta(self, d_eta: Parameters, k: int) -> None:
        per_step = self.learner.norms_at(k) if k else {}
        for name in per_step:
            self._add(name, d_eta[name], k)
        add_in_place(self.d_eta, {name: value for name, value in d_eta.items() if name not in per_step})

    def _add_phi(self, d_phi: Parameters, k: int) -> None:
        if self.learner.inner_lrs is not None:
            self.totals["inner_lrs"][min(k, len(self.learner.inner_lrs) - 1)] += d_phi[RATES]
        add_in_place(self.totals, {f"transform.{name}": part for name, part in d_phi.items() if name != RATES})

    def _add(self, name: str, gradient: torch.Tensor, k: int) -> None:
        """Add to the total of the module's parameter `name`, or to that of step `k` where it has one per step."""
        norms = self.learner.norms
        if norms is not None and name in norms.names:
            total = self.totals[f"norms.rows.{norms.names.index(name)}"]
            total[min(k, len(total) - 1)] += gradient
        else:
            self.totals[f"module.{name}"] += gradient
