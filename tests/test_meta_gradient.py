"""The meta-gradient of every engine against MAML written out by hand, and against finite differences, in float64."""

import pytest
import torch
from torch import nn

from maml_l2l.algorithms import ENGINES
from maml_l2l.algorithms.scores import score
from maml_l2l.backbones import BatchStatisticsNorm
from maml_l2l.tasks.batch import TaskBatch
from tests import reference

WAYS, SHOTS, QUERIES, FILTERS, LR = 3, 2, 2, 4, 0.4


class SmallNet(nn.Module):
    """`reference.ReferenceNet` as an ordinary module."""

    def __init__(self):
        super().__init__()
        self.convolution = nn.Conv2d(1, FILTERS, 3, stride=2, padding=1)
        self.norm = BatchStatisticsNorm(FILTERS)
        self.head = nn.Linear(FILTERS, WAYS)

    def forward(self, x):
        return self.head(torch.relu(self.norm(self.convolution(x))).mean((2, 3)))


@pytest.fixture
def tasks():
    generator = torch.Generator().manual_seed(7)
    labels = torch.arange(WAYS)

    def images(count):
        return torch.rand(2, WAYS * count, 1, 8, 8, generator=generator, dtype=torch.float64)

    return TaskBatch(
        images(SHOTS),
        labels.repeat_interleave(SHOTS).expand(2, -1),
        images(QUERIES),
        labels.repeat_interleave(QUERIES).expand(2, -1),
        WAYS,
    )


@pytest.fixture
def net():
    return reference.ReferenceNet(WAYS, FILTERS, seed=3)


def engine_gradient(engine, net, tasks, steps, first_order):
    learner = ENGINES[engine](SmallNet().double(), lr=LR, first_order=first_order)
    learner.module.load_state_dict({name: value.detach() for name, value in net.parameters.items()})
    scores = learner.meta_gradient(tasks, steps)
    gradients = dict(learner.module.named_parameters())
    return torch.cat([gradients[name].grad.flatten() for name in net.parameters]), scores


def reference_gradient(net, tasks, steps, first_order):
    loss = reference.query_loss(net.parameters, tasks, LR, steps, first_order)
    gradients = torch.autograd.grad(loss, list(net.parameters.values()))
    return torch.cat([gradient.flatten() for gradient in gradients]), loss


def relative_error(found, expected):
    return ((found - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("first_order", [False, True], ids=["second", "first"])
@pytest.mark.parametrize("steps", [1, 3])
def test_equals_the_hand_written_reference(engine, first_order, steps, net, tasks):
    found, scores = engine_gradient(engine, net, tasks, steps, first_order)
    expected, loss = reference_gradient(net, tasks, steps, first_order)
    assert relative_error(found, expected) < 1e-9
    assert scores.losses.mean().item() == pytest.approx(loss.item(), rel=1e-12)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("steps", [1, 3])
def test_second_order_equals_finite_differences(engine, steps, net, tasks):
    found, _ = engine_gradient(engine, net, tasks, steps, first_order=False)
    parameters = {name: value.detach() for name, value in net.parameters.items()}
    generator = torch.Generator().manual_seed(1)
    for _ in range(5):
        direction = {name: torch.randn(value.shape, generator=generator) for name, value in parameters.items()}

        def loss_at(distance, direction=direction):
            moved = {n: (v + distance * direction[n]).requires_grad_() for n, v in parameters.items()}
            return reference.query_loss(moved, tasks, LR, steps, first_order=True).item()

        slope = (loss_at(1e-5) - loss_at(-1e-5)) / 2e-5
        along = torch.cat([direction[name].flatten() for name in parameters]).double() @ found
        assert along.item() == pytest.approx(slope, rel=1e-5, abs=1e-8)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("steps", [1, 3])
def test_first_order_is_the_gradient_at_the_adapted_parameters_and_differs_from_second(engine, steps, net, tasks):
    first, _ = engine_gradient(engine, net, tasks, steps, first_order=True)
    second, _ = engine_gradient(engine, net, tasks, steps, first_order=False)
    at_adapted = 0
    for support, labels, query, query_labels in zip(
        tasks.support, tasks.support_labels, tasks.query, tasks.query_labels, strict=True
    ):
        fast = reference.adapted(net.parameters, support, labels, LR, steps, first_order=True)
        fast = {name: value.detach().requires_grad_() for name, value in fast.items()}
        loss = reference.cross_entropy(net.logits(fast, query), query_labels)
        gradients = torch.autograd.grad(loss, list(fast.values()))
        at_adapted = at_adapted + torch.cat([gradient.flatten() for gradient in gradients]) / len(tasks)
    assert relative_error(first, at_adapted) < 1e-9
    assert relative_error(first, second) > 0.01


@pytest.mark.parametrize("engine", ENGINES)
def test_scores_at_every_step_come_from_one_inner_loop(engine, net, tasks):
    learner = ENGINES[engine](SmallNet().double(), lr=LR)
    learner.module.load_state_dict({name: value.detach() for name, value in net.parameters.items()})
    logits = learner.adapt_and_score(tasks, [0, 2])
    for row, steps in enumerate([0, 2]):
        for index in range(len(tasks)):
            fast = reference.adapted(
                net.parameters, tasks.support[index], tasks.support_labels[index], LR, steps, first_order=True
            )
            expected = net.logits(fast, tasks.query[index])
            torch.testing.assert_close(logits[row, index], expected, rtol=1e-9, atol=1e-9)


def test_score_counts_the_correct_queries_and_averages_their_loss():
    logits = torch.log(torch.tensor([[[0.7, 0.2, 0.1], [0.1, 0.1, 0.8]]], dtype=torch.float64))
    losses, accuracies = score(logits, torch.tensor([[0, 1]]))
    torch.testing.assert_close(losses, -torch.log(torch.tensor([0.7 * 0.1], dtype=torch.float64)) / 2)
    assert accuracies.tolist() == [0.5]


LEARNED = 2  # inner steps with step sizes of their own; a third one takes the last again


@pytest.fixture
def inner_lrs(net):
    generator = torch.Generator().manual_seed(11)
    return torch.rand(LEARNED, len(net.parameters), generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("first_order", [False, True], ids=["second", "first"])
@pytest.mark.parametrize("steps", [1, 2, 3])
def test_learned_step_sizes_equal_the_hand_written_reference(engine, first_order, steps, net, tasks, inner_lrs):
    learner = ENGINES[engine](SmallNet().double(), lr=LR, first_order=first_order)
    learner.learn_inner_lrs(LEARNED)
    learner.module.load_state_dict({name: value.detach() for name, value in net.parameters.items()})
    learner.inner_lrs.data = inner_lrs
    scores = learner.meta_gradient(tasks, steps)
    expected_lrs = inner_lrs.clone().requires_grad_()
    loss = reference.query_loss(net.parameters, tasks, expected_lrs, steps, first_order)
    expected = torch.autograd.grad(loss, [expected_lrs, *net.parameters.values()])
    found = dict(learner.module.named_parameters())
    assert relative_error(learner.inner_lrs.grad, expected[0]) < 1e-9
    for name, gradient in zip(net.parameters, expected[1:], strict=True):
        assert (found[name].grad - gradient).norm() < 1e-9 * max(1, gradient.norm())
    assert scores.losses.mean().item() == pytest.approx(loss.item(), rel=1e-12)


@pytest.mark.parametrize("engine", ENGINES)
def test_gradients_of_learned_step_sizes_equal_finite_differences(engine, net, tasks, inner_lrs):
    learner = ENGINES[engine](SmallNet().double(), lr=LR)
    learner.learn_inner_lrs(LEARNED)
    learner.module.load_state_dict({name: value.detach() for name, value in net.parameters.items()})
    learner.inner_lrs.data = inner_lrs.clone()
    learner.meta_gradient(tasks, LEARNED)
    found = learner.inner_lrs.grad.clone()
    for row, column in ((0, 0), (0, 4), (1, 2), (1, 5)):

        def loss_at(distance, place=(row, column)):
            learner.inner_lrs.data = inner_lrs.clone()
            learner.inner_lrs.data[place] += distance
            with torch.no_grad():
                return score(learner.adapt_and_score(tasks, [LEARNED])[0], tasks.query_labels).losses.mean().item()

        slope = (loss_at(1e-5) - loss_at(-1e-5)) / 2e-5
        assert found[row, column].item() == pytest.approx(slope, rel=1e-5, abs=1e-8)
