"""The exact meta-gradient by one backward sweep, at the memory of a single inner step.

The inner loop is theta_{k+1} = U(theta_k, g_k; phi) with g_k = grad L_support(theta_k; eta), k = 0..K-1. theta: what it
adapts. eta: what the loss uses besides. phi: what the update learns. With lambda_k, the gradient of the query loss for
theta_k, the chain rule reads backwards

    lambda_K = grad L_query(theta_K)                                                                              (1)
    (a, b, d phi) = the transposed Jacobian of U at (theta_k, g_k), applied to lambda_{k+1}                       (2)
    (H_k b, d eta) = the derivative of (grad_theta, grad_eta) L_support at theta_k along b                        (3)
    lambda_k = a + H_k b                                                                                          (4)

H_k, the Hessian of L_support, is symmetric, so H_k b is a directional derivative of a gradient: forward over reverse,
which keeps nothing between steps but theta_k (mixed-mode differentiation: Kemaev et al., ICML 2025). Where the sweep
turns, reverse over reverse gives the same from activations that are still there. First-order MAML is the same without
H_k b. A query loss that counts after other steps than the last, with the weight w_k, starts
(1) with w_K grad L_query(theta_K) and adds w_k grad L_query(theta_k) to (4).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch.func import grad, jvp, vjp

Parameters = dict[str, torch.Tensor]
Loss = Callable[[Parameters, Parameters], torch.Tensor]
Product = Callable[[Loss, Parameters, Parameters, Parameters], tuple[Parameters, Parameters, Parameters]]

_DIFFERENCES = {torch.float64: 1e-10, torch.float32: 1e-5}
"""Of theta to either side, in lengths of b: larger ones step over more kinks of ReLU, smaller ones are all rounding."""

with warnings.catch_warnings():
    # PyTorch loads this at the first `jvp`, and tells of what it deprecates itself.
    warnings.simplefilter("ignore")
    import torch._decomp.decompositions_for_jvp


class Problem(NamedTuple):
    """The inner loop of T tasks. Tensors of theta and its gradients are (T, ...); those of eta and phi tasks share."""

    support_loss: Loss
    """(theta, eta) -> L_support, summed over the tasks."""

    update: Callable[[Parameters, Parameters, Parameters], Parameters]
    """U: (theta, gradients, phi) -> theta."""

    linear: bool
    """Whether U is linear in the gradients: its transposed Jacobian can then be had before they are known."""

    learns: bool
    """Whether d phi is wanted."""

    product: Product | None
    """(support_loss, theta, eta, b) -> (g, H b, d eta), (3); None: first order, without them."""


def step(problem: Problem, theta: Parameters, eta: Parameters, phi: Parameters) -> tuple[Parameters, Parameters]:
    """(theta_{k+1}, g_k)."""
    gradients = grad(problem.support_loss)(theta, eta)
    return problem.update(theta, gradients, phi), gradients


def step_back(
    problem: Problem,
    theta: Parameters,
    gradients: Parameters | None,
    adjoint: Parameters,
    eta: Parameters,
    phi: Parameters,
) -> tuple[Parameters, Parameters, Parameters]:
    """From lambda_{k+1}, `adjoint`, to (lambda_k, d eta, d phi).

    gradients: g_k where it was kept; None: taken anew where it is needed.
    """
    found = gradients
    if found is None:
        needed = not problem.linear or (problem.product is None and problem.learns)
        found = grad(problem.support_loss)(theta, eta) if needed else adjoint
    pull_back = vjp(problem.update, theta, found, phi)[1]
    a, b, d_phi = pull_back(adjoint)  # (2)
    if problem.product is None:
        return a, {name: torch.zeros_like(value) for name, value in eta.items()}, d_phi
    found, product, d_eta = problem.product(problem.support_loss, theta, eta, b)  # (3)
    if gradients is None and problem.linear and problem.learns:  # (2) again, now that the gradients are there
        (d_phi,) = vjp(lambda phi: problem.update(theta, found, phi), phi)[1](adjoint)
    return {name: a[name] + product[name] for name in a}, d_eta, d_phi  # (4)


def turn(
    problem: Problem,
    query_gradient: Callable[[Parameters], tuple[Parameters, Any]],
    theta: Parameters,
    eta: Parameters,
    phi: Parameters,
) -> tuple[Parameters, Parameters, Parameters, Any]:
    """The last step, k = K - 1, there and back: (lambda_k, d eta, d phi, what the query gradient gave besides).

    query_gradient: theta_K -> (lambda_K, anything).  The gradient of one step is differentiated in reverse here, over
    the activations that it has left: 12 products of matrices where `step`, (1) and `step_back` take 15.
    """
    if problem.product is exact_product:
        following, pull_back = vjp(lambda *at: step(problem, *at)[0], theta, eta, phi)[:2]
        adjoint, besides = query_gradient(following)
        return (*pull_back(adjoint), besides)
    following, gradients = step(problem, theta, eta, phi)
    adjoint, besides = query_gradient(following)
    return *step_back(problem, theta, gradients, adjoint, eta, phi), besides


def exact_product(
    support_loss: Loss, theta: Parameters, eta: Parameters, b: Parameters
) -> tuple[Parameters, Parameters, Parameters]:
    """(g, H b, d eta), (3), by forward over reverse."""
    b = {name: value.contiguous() for name, value in b.items()}  # `jvp` takes no expanded tensors
    both = grad(support_loss, argnums=(0, 1))
    (gradients, _), (product, d_eta) = jvp(lambda theta: both(theta, eta), (theta,), (b,))[:2]
    return gradients, product, d_eta


def product_by_differences(
    support_loss: Loss, theta: Parameters, eta: Parameters, b: Parameters
) -> tuple[Parameters, Parameters, Parameters]:
    """(g, H b, d eta), (3), of two gradients: HF-MAML (Fallah et al., 2020, section 5), by a central difference.

    In float64, where the device has it: in float32 no difference is both free of rounding and short of the kinks.
    """
    dtype = torch.float32 if next(iter(b.values())).device.type == "mps" else torch.float64
    length, both, sides = _DIFFERENCES[dtype], grad(support_loss, argnums=(0, 1)), []
    wide_theta, wide_eta, wide_b = (_to(dtype, values) for values in (theta, eta, b))
    for step in (length, -length):
        sides.append(both({name: value + step * wide_b[name] for name, value in wide_theta.items()}, wide_eta))
    (g_upper, eta_upper), (g_lower, eta_lower) = sides
    product, d_eta = (
        {name: ((upper[name] - lower[name]) / (2 * length)).to(like[name].dtype) for name in upper}
        for upper, lower, like in ((g_upper, g_lower, theta), (eta_upper, eta_lower, eta))
    )
    gradients = {name: ((g_upper[name] + g_lower[name]) / 2).to(theta[name].dtype) for name in g_upper}
    return gradients, product, d_eta


def _to(dtype: torch.dtype, values: Parameters) -> Parameters:
    return {name: value.to(dtype) for name, value in values.items()}


def conjugate_gradients(apply: Callable[[Parameters], Parameters], right: Parameters, steps: int) -> Parameters:
    """x with apply(x) = right after `steps` steps from zero, for each of T tasks on its own.

    apply: linear, symmetric, of (T, ...) tensors.  A task stops where `apply` is not positive along its direction, or
    where it is solved (Hestenes and Stiefel, 1952).
    """
    solution = {name: torch.zeros_like(value) for name, value in right.items()}
    residual = direction = right
    size = _dot(residual, residual)
    for _ in range(steps):
        image = apply(direction)
        curvature = _dot(direction, image)
        goes_on = (curvature > 0) & (size > 0)
        rate = torch.where(goes_on, size / torch.where(goes_on, curvature, 1), 0)
        solution = _plus(solution, rate, direction)
        residual = _plus(residual, -rate, image)
        following = torch.where(goes_on, _dot(residual, residual), 0)
        direction = _plus(residual, following / torch.where(goes_on, size, 1), direction)
        size = following
    return solution


def _dot(one: Parameters, other: Parameters) -> torch.Tensor:
    """(T,) inner products of the tasks."""
    return torch.stack([(one[name] * other[name]).flatten(1).sum(1) for name in one]).sum(0)


def _plus(one: Parameters, rate: torch.Tensor, other: Parameters) -> Parameters:
    """one + rate * other.  rate: (T,)."""
    return {name: value + rate.view(-1, *[1] * (value.ndim - 1)) * other[name] for name, value in one.items()}


class _Rows:
    """`count` values of `like` in one block of memory per name.

    One by one they would come to lie between the larger tensors of the steps, and leave holes when those are freed.
    """

    def __init__(self, count: int, like: Parameters):
        self._blocks = {name: value.new_empty(count, *value.shape) for name, value in like.items()}

    def put(self, row: int, values: Parameters) -> None:
        for name, block in self._blocks.items():
            block[row] = values[name]

    def get(self, row: int) -> Parameters:
        """A copy: to a view `jvp` gives a tangent of the size of the whole block."""
        return {name: block[row].clone() for name, block in self._blocks.items()}


def sweep(
    theta: Parameters,
    steps: int,
    forward: Callable[[int, Parameters], tuple[Parameters, Parameters | None]],
    at_end: Callable[[Parameters], Parameters],
    backward: Callable[[int, Parameters, Parameters | None, Parameters], Parameters],
    recompute: bool = False,
) -> Parameters:
    """lambda_0 of an inner loop of `steps` steps from `theta`.

    forward(k, theta_k) -> (theta_{k+1}, g_k where it is to be kept).  at_end(theta_K) -> lambda_K.
    backward(k, theta_k, g_k or None, lambda_{k+1}) -> lambda_k.
    recompute: keep every sqrt(K)-th theta_k only, and take the others anew on the way back.
    """
    every = math.isqrt(max(steps - 1, 0)) + 1 if recompute else 1
    starts = range(0, steps, every)
    thetas, kept = _Rows(len(starts), theta), None
    for k in range(steps):
        following, gradients = forward(k, theta)
        if k in starts:
            thetas.put(k // every, theta)
            if gradients is not None:
                kept = kept or _Rows(len(starts), gradients)
                kept.put(k // every, gradients)
        theta = following
    adjoint = at_end(theta)
    for first in reversed(starts):
        row = first // every
        segment = [(thetas.get(row), None if kept is None else kept.get(row))]
        for k in range(first + 1, min(first + every, steps)):
            segment.append((forward(k - 1, segment[-1][0])[0], None))
        for k in reversed(range(first, first + len(segment))):
            adjoint = backward(k, *segment.pop(), adjoint)
    return adjoint


def for_each_task(tasks: int, value: torch.Tensor) -> torch.Tensor:
    """(tasks, ...) copies of `value`."""
    return value.expand(tasks, *value.shape).contiguous()


def add_in_place(totals: Parameters, parts: Parameters) -> None:
    """Add each of `parts` to the total of its name."""
    for name, part in parts.items():
        totals[name] += part
