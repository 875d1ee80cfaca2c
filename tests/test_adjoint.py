"""The backward sweep against learn2learn's loop, learn2learn's own classes and finite differences, in float64."""

import copy
import fnmatch
import weakref
from functools import partial

import learn2learn as l2l
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from maml_l2l.algorithms.loop import LoopMAML
from maml_l2l.algorithms.transforms import named_transform
from maml_l2l.algorithms.vectorized import VectorizedMAML
from maml_l2l.backbones import Conv4
from maml_l2l.system.errors import UserError
from maml_l2l.tasks.batch import TaskBatch
from tests.test_engines import ORDERS, Doubling, gradient, random_tasks, relative_error

SIDE = 12


def conv4(**options):
    return Conv4(5, filters=4, **options)


def curved(activation=nn.Tanh):
    """Second derivatives that ReLU hides."""
    return nn.Sequential(nn.Flatten(), nn.Linear(SIDE * SIDE, 8), activation(), Doubling(8), nn.Linear(8, 5))


class Headed(nn.Module):
    """An ordinary module with a linear `head`."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(SIDE * SIDE, 6), nn.GELU())
        self.head = nn.Linear(6, 5)

    def forward(self, x):
        return self.head(self.body(x))


NETWORKS = {
    "conv4": conv4,
    "max_pool": partial(conv4, downsample="max_pool"),
    "tanh": curved,
    "gelu": partial(curved, nn.GELU),
}


def plain(_):
    pass


def learned_rates(learner):
    learner.learn_inner_lrs(2)
    with torch.no_grad():  # each differs, and one is negative
        learner.inner_lrs.copy_(torch.linspace(-0.1, 0.5, learner.inner_lrs.numel()).view_as(learner.inner_lrs))


def transform(update, learner):
    learner.learn_transform(named_transform(update, learner.module), linear=True)
    with torch.no_grad():
        generator = torch.Generator().manual_seed(3)
        for parameter in learner.transform.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)


def rates_and_curvature(learner):
    learned_rates(learner)
    transform("meta_curvature", learner)


def fitting(learner, *patterns):
    """Those that name some of its parameters; learners refuse others."""
    names = [name for name, _ in learner.module.named_parameters()]
    return [pattern for pattern in patterns if fnmatch.filter(names, pattern)]


def head_only(learner):
    learner.adapted = fitting(learner, "head.*", "4.*")


def body_only(learner):
    learner.adapted = fitting(learner, "convolutions.*", "norms.*", "1.*", "3.*")


def frozen(learner):
    next(learner.module.parameters()).requires_grad_(False)


def recomputed(learner):
    learner.recompute = True


def norms_per_step(learner):
    """Where the network has none, learned rates instead."""
    if not any("norms" in name for name, _ in learner.module.named_parameters()):
        return learned_rates(learner)
    learner.learn_norms(2)
    with torch.no_grad():
        for index, values in enumerate(learner.norms.rows):
            values += torch.linspace(-0.2, 0.1 * index, values.numel()).view_as(values)


def multi_step(learner):
    learner.step_weights = [0.2, -0.3, 0.7]


def multi_step_and_norms(learner):
    multi_step(learner)
    norms_per_step(learner)


VARIANTS = {
    "plain": plain,
    "learned rates": learned_rates,
    "meta_sgd": partial(transform, "meta_sgd"),
    "meta_curvature": partial(transform, "meta_curvature"),
    "kronecker": partial(transform, "kronecker"),
    "rates and curvature": rates_and_curvature,
    "head only": head_only,
    "body only": body_only,
    "frozen": frozen,
    "recomputed": recomputed,
    "norms per step": norms_per_step,
    "multi-step loss": multi_step,
    "multi-step loss and norms per step": multi_step_and_norms,
}


def pair(make, variant=plain, **options):
    """Both engines in float64, with the same weights."""
    torch.manual_seed(0)
    network = make()
    learners = [engine(copy.deepcopy(network), lr=0.3, **options) for engine in (LoopMAML, VectorizedMAML)]
    for learner in learners:
        variant(learner)
        learner.double()
    return learners


def gradients_of(learner):
    found = {name: p.grad for name, p in learner.named_parameters() if p.requires_grad}
    assert all(grad is not None for grad in found.values())
    return found


def assert_equal_gradients(loop, vectorized, tasks, steps, normalisation="batch"):
    expected = loop.meta_gradient(tasks, steps, normalisation)
    found = vectorized.meta_gradient(tasks, steps, normalisation)
    expected_parts, found_parts = gradients_of(loop), gradients_of(vectorized)
    assert expected_parts.keys() == found_parts.keys()
    whole = torch.cat([part.flatten() for part in expected_parts.values()]).norm()
    difference = torch.cat([(found_parts[name] - expected_parts[name]).flatten() for name in expected_parts]).norm()
    assert difference < 1e-9 * whole
    torch.testing.assert_close(found.losses, expected.losses, rtol=1e-9, atol=0)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("network", NETWORKS)
@ORDERS
def test_equals_the_loop(network, variant, first_order):
    loop, vectorized = pair(NETWORKS[network], VARIANTS[variant], first_order=first_order)
    assert_equal_gradients(loop, vectorized, random_tasks(2, 5, 1, 2, side=SIDE), 3)


@pytest.mark.parametrize("steps", [1, 10])
@pytest.mark.parametrize("network", NETWORKS)
def test_equals_the_loop_after_one_step_and_after_ten(network, steps):
    loop, vectorized = pair(NETWORKS[network], lambda learner: setattr(learner, "recompute", True))
    assert_equal_gradients(loop, vectorized, random_tasks(2, 5, 1, 1, side=SIDE), steps)


@pytest.mark.parametrize("variant", ["plain", "learned rates", "meta_sgd", "rates and curvature", "norms per step"])
@ORDERS
def test_recomputed_steps_equal_the_loop(variant, first_order):
    def both(learner):
        VARIANTS[variant](learner)
        learner.recompute = True

    loop, vectorized = pair(conv4, both, first_order=first_order)
    assert_equal_gradients(loop, vectorized, random_tasks(2, 5, 1, 2, side=SIDE), 4)


@pytest.mark.parametrize("variant", ["plain", "rates and curvature", "head only"])
@ORDERS
def test_equals_the_loop_with_the_statistics_of_the_support(variant, first_order):
    loop, vectorized = pair(conv4, VARIANTS[variant], first_order=first_order)
    assert_equal_gradients(loop, vectorized, random_tasks(2, 5, 1, 2, side=SIDE), 2, "support")


def test_equals_the_loop_after_a_hundred_steps():
    loop, vectorized = pair(curved)
    for learner in (loop, vectorized):
        learner.lr = 0.05
    assert_equal_gradients(loop, vectorized, random_tasks(1, 5, 1, 1, side=SIDE), 100)


@pytest.mark.parametrize("make", [conv4, Headed])
@pytest.mark.parametrize("variant", ["plain", "rates and curvature", "head only", "norms per step"])
@ORDERS
def test_the_prototype_head_equals_the_loop(make, variant, first_order):
    def both(learner):
        learner.prototype_head = True
        VARIANTS[variant](learner)

    loop, vectorized = pair(make, both, first_order=first_order)
    for tasks in (random_tasks(2, 5, 2, 2, side=SIDE), random_tasks(2, 7, 1, 1, side=SIDE)):  # more ways than the head
        assert_equal_gradients(loop, vectorized, tasks, 2)


def test_prototypes_without_a_step_are_nearest_to_the_class_means():
    _, learner = pair(Headed, lambda learner: setattr(learner, "prototype_head", True))
    task = random_tasks(1, 3, 4, 2, side=SIDE)
    outputs = learner.adapt_and_score(task, [0])[0, 0]
    features, queries = learner.module.body(task.support[0]), learner.module.body(task.query[0])
    means = torch.stack([features[task.support_labels[0] == label].mean(0) for label in range(3)])
    expected = -torch.cdist(queries, means).square() + queries.square().sum(1, keepdim=True)
    torch.testing.assert_close(outputs, expected)


def test_regression_with_a_loss_of_ones_own_equals_the_loop():
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.rand(3, 7, 1, generator=generator, dtype=torch.float64) for _ in range(2))
    tasks = TaskBatch(x, y, x + 0.1, 2 * y, None)

    def network():
        return nn.Sequential(nn.Linear(1, 9), nn.Tanh(), nn.Linear(9, 1))

    loop, vectorized = pair(network, loss=F.mse_loss)
    assert_equal_gradients(loop, vectorized, tasks, 3)
    assert vectorized.meta_gradient(tasks, 1).accuracies.isnan().all()


def meta_gradient_by_learn2learn(wrapper, tasks, steps):
    """Reverse over reverse, as learn2learn's examples do."""
    total = 0
    for task in tasks.chunks(1):
        clone = wrapper.clone()
        for _ in range(steps):
            clone.adapt(F.cross_entropy(clone(task.support[0]), task.support_labels[0]))
        total = total + F.cross_entropy(clone(task.query[0]), task.query_labels[0]) / len(tasks)
    total.backward()
    return {name: p.grad for name, p in wrapper.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("make", [curved, conv4])
@ORDERS
def test_meta_sgd_equals_learn2learns(make, first_order):
    _, ours = pair(make, VARIANTS["meta_sgd"], first_order=first_order)
    theirs = l2l.algorithms.MetaSGD(copy.deepcopy(ours.module), lr=0.3, first_order=first_order).double()
    with torch.no_grad():
        for rate, own in zip(theirs.lrs, ours.transform.parameters(), strict=True):
            rate.copy_(0.3 * own)
    tasks = random_tasks(2, 5, 1, 1, side=SIDE)
    expected = meta_gradient_by_learn2learn(theirs, tasks, 2)
    ours.meta_gradient(tasks, 2)
    for name, parameter in ours.module.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[f"module.{name}"], rtol=1e-9, atol=1e-12)
    for rate, own in zip(theirs.lrs, ours.transform.parameters(), strict=True):
        torch.testing.assert_close(own.grad, 0.3 * rate.grad, rtol=1e-9, atol=1e-12)


class Bent(nn.Module):
    """A transform that nobody's library has, and that is not linear in the gradient."""

    def __init__(self, parameter):
        super().__init__()
        self.gain = nn.Parameter(torch.full_like(parameter, 1.5))

    def forward(self, gradient):
        return torch.tanh(self.gain * gradient)


GBML_TRANSFORMS = {
    "meta_curvature": (l2l.optim.MetaCurvatureTransform, True),
    "kronecker": (l2l.optim.KroneckerTransform(l2l.nn.KroneckerLinear), True),
    "module": (l2l.optim.ModuleTransform(nn.Linear), False),
    "bent": (Bent, False),
}


@pytest.mark.parametrize("name", GBML_TRANSFORMS)
@ORDERS
def test_transforms_equal_learn2learns_gbml(name, first_order):
    make, linear = GBML_TRANSFORMS[name]

    def network():
        return nn.Sequential(nn.Conv2d(1, 3, 3, stride=4), nn.Tanh(), nn.Flatten(), nn.Linear(27, 5))

    torch.manual_seed(0)
    theirs = l2l.algorithms.GBML(network(), make, lr=0.3, first_order=first_order).double()
    ours = VectorizedMAML(copy.deepcopy(theirs.module), lr=0.3, first_order=first_order)
    ours.learn_transform(make, linear)
    ours.double()
    with torch.no_grad():
        generator = torch.Generator().manual_seed(1)
        for own, other in zip(ours.transform.parameters(), theirs.compute_update.parameters(), strict=True):
            other += 0.1 * torch.randn(other.shape, generator=generator)
            own.copy_(other)
    tasks = random_tasks(2, 5, 1, 1, side=SIDE)
    expected = meta_gradient_by_learn2learn(theirs, tasks, 2)
    ours.meta_gradient(tasks, 2)
    for parameter, other in zip(ours.module.parameters(), theirs.module.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, other.grad, rtol=1e-9, atol=1e-12)
    for own, other in zip(ours.transform.parameters(), theirs.compute_update.parameters(), strict=True):
        torch.testing.assert_close(own.grad, other.grad, rtol=1e-9, atol=1e-12)
    assert expected


@pytest.mark.parametrize("variant", ["plain", "rates and curvature", "head only"])
def test_equals_finite_differences(variant):
    _, learner = pair(curved, VARIANTS[variant])
    tasks = random_tasks(2, 5, 1, 1, side=SIDE)
    learner.meta_gradient(tasks, 2)
    parameters = [p for p in learner.parameters() if p.requires_grad]
    generator = torch.Generator().manual_seed(2)
    for parameter in parameters:
        direction = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        losses = []
        for distance in (1e-5, -2e-5):
            with torch.no_grad():
                parameter += distance * direction
                losses.append(learner.score(learner.adapt_and_score(tasks, [2])[0], tasks.query_labels).losses.mean())
        with torch.no_grad():
            parameter += 1e-5 * direction
        slope = (losses[0] - losses[1]).item() / 2e-5
        assert (direction * parameter.grad).sum().item() == pytest.approx(slope, rel=1e-5, abs=1e-9)


@pytest.mark.parametrize("variant", ["plain", "rates and curvature"])
def test_every_chunk_size_gives_the_same_gradient(variant):
    _, learner = pair(conv4, VARIANTS[variant])
    tasks, found = random_tasks(5, 5, 1, 1, side=SIDE), []
    for learner.task_chunk in (1, 2, 5, None):
        learner.meta_gradient(tasks, 2)
        found.append(gradient(learner))
    for other in found[1:]:
        assert relative_error(other, found[0]) < 1e-12


def test_a_clone_adapts_as_the_engine_does():
    loop, vectorized = pair(curved, VARIANTS["rates and curvature"])
    task = random_tasks(1, 5, 1, 1, side=SIDE)
    for learner in (loop, vectorized):
        clone = learner.clone()
        for _ in range(3):
            clone.adapt(F.cross_entropy(clone(task.support[0]), task.support_labels[0]))
            if clone._steps == 1:
                clone, left = clone.clone(), clone  # which goes on as the first would have
        torch.testing.assert_close(clone(task.query[0]), vectorized.adapt_and_score(task, [3])[0, 0], rtol=1e-9, atol=0)
        torch.testing.assert_close(left(task.query[0]), vectorized.adapt_and_score(task, [1])[0, 0], rtol=1e-9, atol=0)


def test_first_order_has_nothing_of_the_implicit_gradient():
    tasks, found = random_tasks(2, 5, 1, 1, side=SIDE), []
    for gradient_ in ("second", "implicit"):
        _, learner = pair(curved)
        learner.first_order, learner.gradient, learner.proximal = True, gradient_, 5.0
        learner.meta_gradient(tasks, 3)
        found.append((gradient(learner), learner.adapt_and_score(tasks, [3])))
    assert torch.equal(found[0][0], found[1][0]) and torch.equal(found[0][1], found[1][1])


def test_tasks_of_unequal_size_are_scored_as_each_alone():
    _, learner = pair(conv4)
    sizes = [(5, 1, 2), (3, 2, 1), (3, 2, 1)]
    alone = [random_tasks(1, *size, side=SIDE, seed=seed) for seed, size in enumerate(sizes)]
    together = TaskBatch.stack(alone)
    found = learner.adapt_and_score(together, [0, 2])
    assert found.shape == (2, 3, 10, 5)
    for index, task in enumerate(alone):
        expected = learner.adapt_and_score(task, [0, 2])[:, 0]
        torch.testing.assert_close(found[:, index, : expected.shape[1], : task.ways], expected, rtol=1e-9, atol=1e-12)
    assert found[:, 1, 3:].isnan().all()
    gradients = []
    for task in alone:
        learner.meta_gradient(task, 2)
        gradients.append(gradient(learner) / len(alone))
    learner.meta_gradient(together, 2)
    assert relative_error(gradient(learner), sum(gradients)) < 1e-12


class LiveBytes(TorchDispatchMode):
    """The most bytes that tensors made under it held at once."""

    def __init__(self):
        super().__init__()
        self.most, self._storages = 0, {}

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        results = function(*arguments, **(options or {}))
        for tensor in tree_leaves(results):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in self._storages:
                    self._storages[storage._cdata] = storage.nbytes()
                    weakref.finalize(storage, self._storages.pop, storage._cdata, None)
        self.most = max(self.most, sum(self._storages.values()))
        return results


def most_bytes(learner, tasks, steps):
    with LiveBytes() as live:
        learner.meta_gradient(tasks, steps)
    return live.most


@pytest.mark.parametrize("variant", ["plain", "rates and curvature"])
def test_nothing_but_the_weights_is_kept_between_steps(variant):
    _, learner = pair(conv4, VARIANTS[variant])
    tasks = random_tasks(2, 5, 1, 1, side=SIDE)
    learner.task_chunk = len(tasks)
    weights = len(tasks) * sum(p.numel() for p in learner.module.parameters()) * 8
    few, many = (most_bytes(learner, tasks, steps) for steps in (3, 13))
    assert many - few <= 10 * weights * 1.05
    learner.recompute = True
    assert most_bytes(learner, tasks, 13) - few <= 6 * weights


def test_first_order_keeps_no_weights_where_the_update_learns_nothing():
    _, learner = pair(conv4, first_order=True)
    tasks = random_tasks(2, 5, 1, 1, side=SIDE)
    learner.task_chunk = len(tasks)
    assert most_bytes(learner, tasks, 13) == most_bytes(learner, tasks, 3)


def test_what_does_not_fit_is_refused():
    with pytest.raises(UserError, match="keeps running statistics"):
        VectorizedMAML(nn.Sequential(nn.BatchNorm2d(3)), lr=0.1)
    with pytest.raises(UserError, match="leave allow_unused=False to LoopMAML"):
        VectorizedMAML(nn.Linear(2, 2), lr=0.1, allow_unused=False)
    layer = nn.Linear(2, 2)
    layer.bias.requires_grad_(False)
    with pytest.raises(UserError, match="bias requires no gradient, which allow_nograd=False rules out"):
        LoopMAML(layer, lr=0.1, allow_nograd=False)
    _, learner = pair(curved)
    tasks = random_tasks(1, 5, 1, 1, side=SIDE)
    for steps in ([3, 1], [1, 1], [], [-1]):
        with pytest.raises(UserError, match="each greater than the one before"):
            learner.adapt_and_score(tasks, steps)
    for call in (partial(learner.meta_gradient, tasks, 1), partial(learner.adapt_and_score, tasks, [1])):
        with pytest.raises(UserError, match="normalisation should be 'batch' or 'support', found 'suport'"):
            call(normalisation="suport")


def test_the_modules_own_compile_is_left_alone():
    assert VectorizedMAML(nn.Linear(2, 2), lr=0.1).compile() is None
