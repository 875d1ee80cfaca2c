"""The approximations of the meta-gradient against their equations in explicit float64 tensors."""

import dataclasses

import pytest
import torch
from torch import nn

from maml_l2l.algorithms import VectorizedMAML
from maml_l2l.algorithms.adjoint import conjugate_gradients
from tests.reference import cross_entropy
from tests.test_engines import random_tasks

SIDE, WAYS, RATE = 4, 3, 0.3


def learner(gradient, **options):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(SIDE * SIDE, 4), nn.Tanh(), nn.Linear(4, WAYS))
    made = VectorizedMAML(network, lr=RATE).double()
    made.gradient = gradient
    for name, value in options.items():
        setattr(made, name, value)
    return made


def tasks():
    return random_tasks(3, WAYS, 2, 2, side=SIDE)


def loss(parameters, images, labels):
    """The same network written out."""
    weight, bias, head, head_bias = parameters
    return cross_entropy((images.flatten(1) @ weight.T + bias).tanh() @ head.T + head_bias, labels)


def inner_loop(start, images, labels, steps, moving, strength=0.0):
    """The weights after `steps` steps on the loss with a pull of `strength` towards where `moving` started."""
    fast = list(start)
    for _ in range(steps):
        pull = sum((fast[i] - start[i]).square().sum() for i in moving)
        objective = loss(fast, images, labels) + strength / 2 * pull
        gradients = torch.autograd.grad(objective, [fast[i] for i in moving], create_graph=True)
        for i, gradient in zip(moving, gradients, strict=True):
            fast[i] = fast[i] - RATE * gradient
    return fast


def parameters_of(made):
    return [parameter.detach().clone().requires_grad_() for parameter in made.module.parameters()]


def each_task(batch):
    return zip(batch.support, batch.support_labels, batch.query, batch.query_labels, strict=True)


def flat(tensors):
    return torch.cat([tensor.flatten() for tensor in tensors])


def found(made, steps):
    made.meta_gradient(tasks(), steps)
    return flat(parameter.grad for parameter in made.module.parameters())


def test_reptile_is_the_way_that_the_weights_went():
    made = learner("reptile")
    start = parameters_of(made)
    ways = [flat(start) - flat(inner_loop(start, x, y, 4, range(4))) for x, y, _, _ in each_task(tasks())]
    torch.testing.assert_close(found(made, 4), torch.stack(ways).mean(0) / RATE, rtol=1e-9, atol=1e-12)


def dense_hessian(point, images, labels):
    sizes = [tensor.numel() for tensor in point]

    def of_vector(vector):
        parts = [part.view_as(like) for part, like in zip(vector.split(sizes), point, strict=True)]
        return loss(parts, images, labels)

    return torch.autograd.functional.hessian(of_vector, flat(point).detach())


def test_implicit_solves_with_the_whole_hessian():
    made = learner("implicit", proximal=3.0, cg_steps=100)
    start, solutions = parameters_of(made), []
    for x, y, query, labels in each_task(tasks()):
        point = [part.detach().requires_grad_() for part in inner_loop(start, x, y, 5, range(4), strength=3.0)]
        right = flat(torch.autograd.grad(loss(point, query, labels), point))
        system = torch.eye(len(right), dtype=torch.float64) + dense_hessian(point, x, y) / 3.0
        solutions.append(torch.linalg.solve(system, right))
    torch.testing.assert_close(found(made, 5), torch.stack(solutions).mean(0), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("moving", [[0, 1, 2, 3], [2, 3], [0, 1]])
def test_implicit_is_the_exact_gradient_where_the_inner_loop_has_converged(moving):
    """Of the weights that do not adapt, too."""
    made = learner("implicit", proximal=2.0, cg_steps=50)
    names = [name for name, _ in made.module.named_parameters()]
    made.adapted = [names[i] for i in moving]
    start = parameters_of(made)
    queries = [
        loss(inner_loop(start, x, y, 150, moving, strength=2.0), query, labels)
        for x, y, query, labels in each_task(tasks())
    ]
    expected = flat(torch.autograd.grad(torch.stack(queries).mean(), start))
    torch.testing.assert_close(found(made, 150), expected, rtol=1e-7, atol=1e-9)


def test_evaluation_pulls_to_the_start_as_training_does():
    made = learner("implicit", proximal=3.0)
    batch = tasks()
    with torch.no_grad():
        outputs = made.adapt_and_score(batch, [4])[0, 0]
    start, x, y = parameters_of(made), batch.support[0], batch.support_labels[0]
    weight, bias, head, head_bias = inner_loop(start, x, y, 4, range(4), strength=3.0)
    expected = (batch.query[0].flatten(1) @ weight.T + bias).tanh() @ head.T + head_bias
    torch.testing.assert_close(outputs, expected.detach())


def test_finite_differences_stand_for_the_hessian_in_the_backward_recursion():
    made, start = learner("finite_difference"), None
    start, sums = parameters_of(made), []
    for x, y, query, labels in each_task(tasks()):

        def gradient(point, x=x, y=y):
            point = [part.detach().requires_grad_() for part in point]
            return torch.autograd.grad(loss(point, x, y), point)

        points = [start]
        for _ in range(3):
            step = gradient(points[-1])
            points.append([part - RATE * g for part, g in zip(points[-1], step, strict=True)])
        last = [part.detach().requires_grad_() for part in points[-1]]
        adjoint = torch.autograd.grad(loss(last, query, labels), last)
        for point in reversed(points[:-1]):
            upper, lower = (
                gradient([part - sign * 1e-5 * RATE * a for part, a in zip(point, adjoint, strict=True)])
                for sign in (1, -1)
            )
            adjoint = [a + (u - v) / 2e-5 for a, u, v in zip(adjoint, upper, lower, strict=True)]
        sums.append(flat(adjoint))
    torch.testing.assert_close(found(made, 3), torch.stack(sums).mean(0), rtol=1e-4, atol=1e-6)


class ConstantNorm(nn.BatchNorm1d):
    """One that stays in evaluation mode, so that its statistics are constants."""

    def train(self, _mode=True):
        return super().train(False)


def test_finite_differences_in_float32_neither_drown_in_rounding_nor_step_over_a_kink():
    """One unit of the hidden layer is 10^-8 whatever the image: a step of 10^-5 to either side turns it off."""

    def gradient(kind, dtype):
        torch.manual_seed(0)
        hidden = nn.Linear(SIDE * SIDE, 4)
        with torch.no_grad():
            hidden.weight[0], hidden.bias[0] = 0, 1e-8
        network = nn.Sequential(nn.Flatten(), hidden, ConstantNorm(4), nn.ReLU(), nn.Linear(4, 1), nn.Flatten(0))
        made = VectorizedMAML(network.train(), lr=RATE, loss=nn.functional.mse_loss)
        made.gradient = kind
        batch = random_tasks(3, WAYS, 2, 2, side=SIDE)
        made.to(dtype).meta_gradient(
            dataclasses.replace(
                batch.to("cpu", dtype),
                support_labels=batch.support_labels.to(dtype),
                query_labels=batch.query_labels.to(dtype),
                ways=None,
            ),
            1,
        )
        return flat(parameter.grad for parameter in made.module.parameters()).double()

    exact = gradient("second", torch.float64)
    torch.testing.assert_close(gradient("finite_difference", torch.float32), exact, rtol=1e-4, atol=1e-6)


def test_finite_differences_are_close_to_the_exact_gradient_with_all_that_is_learned():
    exact, approximate = (learner(gradient) for gradient in ("second", "finite_difference"))
    for made in (exact, approximate):
        made.learn_inner_lrs(3)
        made.double().adapted = ["3.*", "1.weight"]
        made.meta_gradient(tasks(), 3)
    for one, other in zip(exact.parameters(), approximate.parameters(), strict=True):
        torch.testing.assert_close(other.grad, one.grad, rtol=1e-4, atol=1e-6)


def test_conjugate_gradients_stop_where_the_matrix_is_not_positive():
    """One task each: positive, indefinite, and solved at the start."""
    matrices = torch.stack([torch.diag(torch.tensor(values)) for values in ([1.0, 4.0], [1.0, -4.0], [1.0, 1.0])])
    right = {"x": torch.tensor([[1.0, 1.0], [0.0, 1.0], [0.0, 0.0]])}
    solution = conjugate_gradients(lambda b: {"x": torch.einsum("tij,tj->ti", matrices, b["x"])}, right, 5)["x"]
    torch.testing.assert_close(solution, torch.tensor([[1.0, 0.25], [0.0, 0.0], [0.0, 0.0]]))


@pytest.mark.parametrize("gradient", ["implicit", "reptile", "finite_difference"])
def test_every_chunk_size_gives_the_same(gradient):
    whole, parts = (found(learner(gradient, task_chunk=chunk), 2) for chunk in (3, 2))
    torch.testing.assert_close(parts, whole, rtol=1e-9, atol=1e-12)
