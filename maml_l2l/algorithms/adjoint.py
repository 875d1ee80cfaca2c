"""The exact meta-gradient by one backward sweep, at the memory of a single inner step.

The inner loop is theta_{k+1} = U(theta_k, g_k; phi) with g_k = grad L_support(theta_k; eta), k = 0..K-1. theta: what it
adapts. eta: what the loss uses besides. phi: what the update learns. With lambda_k, the gradient of the query loss for
theta_k, the chain rule reads backwards

    lambda_K = grad L_query(theta_K)                                                                              (1)
    (a, b, d phi) = the transposed Jacobian of U at (theta_k, g_k), applied to lambda_{k+1}                       (2)
    (H_k b, d eta) = the derivative of (grad_theta, grad_eta) L_support at theta_k along b                        (3)
    lambda_k = a + H_k b                                                                                          (4)

H_k, the Hessian of L_support, is symmetric, so H_k b is a directional derivative of a gradient: forward over reverse,
which keeps nothing between steps but theta_k (mixed-mode differentiation: Kemaev et al., ICML 2025). First-order MAML
is the same sweep without H_k b.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch.func import grad, jvp, vjp

Parameters = dict[str, torch.Tensor]

with warnings.catch_warnings():
    # PyTorch loads this at the first `jvp`, and tells of what it deprecates itself.
    warnings.simplefilter("ignore")
    import torch._decomp.decompositions_for_jvp


class Problem(NamedTuple):
    """The inner loop of T tasks. Tensors of theta and its gradients are (T, ...); those of eta and phi tasks share."""

    support_loss: Callable[[Parameters, Parameters], torch.Tensor]
    """(theta, eta) -> L_support, summed over the tasks."""

    update: Callable[[Parameters, Parameters, Parameters], Parameters]
    """U: (theta, gradients, phi) -> theta."""

    linear: bool
    """Whether U is linear in the gradients: its transposed Jacobian can then be had before they are known."""

    first_order: bool
    learns: bool
    """Whether d phi is wanted."""


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
    if gradients is None:
        gradients = adjoint if problem.linear else grad(problem.support_loss)(theta, eta)
    pull_back = vjp(problem.update, theta, gradients, phi)[1]
    a, b, d_phi = pull_back(adjoint)  # (2)
    if problem.first_order:
        return a, {name: torch.zeros_like(value) for name, value in eta.items()}, d_phi
    b = {name: value.contiguous() for name, value in b.items()}  # `jvp` takes no expanded tensors
    both = grad(problem.support_loss, argnums=(0, 1))
    (gradients, _), (product, d_eta) = jvp(lambda theta: both(theta, eta), (theta,), (b,))[:2]  # (3)
    if problem.linear and problem.learns:  # (2) again, now that the gradients are there
        (d_phi,) = vjp(lambda phi: problem.update(theta, gradients, phi), phi)[1](adjoint)
    return {name: a[name] + product[name] for name in a}, d_eta, d_phi  # (4)


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
    kept = []
    for k in range(steps):
        following, gradients = forward(k, theta)
        if k % every == 0:
            kept.append((theta, gradients))
        theta = following
    adjoint = at_end(theta)
    for first in reversed(range(0, steps, every)):
        segment = [kept.pop()]
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
