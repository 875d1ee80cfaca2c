"""The engines against one another: the same gradients, scores and trained weights, for any module."""

import math
from functools import partial

import pytest
import torch
from torch import nn

from maml_l2l.algorithms.loop import LoopMAML
from maml_l2l.algorithms.vectorized import VectorizedMAML
from maml_l2l.backbones import Conv4
from maml_l2l.backbones import conv4 as backbones
from maml_l2l.system.learn2learn_import import MAML
from maml_l2l.tasks.batch import TaskBatch


class TwoPlaces(nn.Module):
    """A layer that stands in two places, as in learn2learn's networks, and a parameter that two layers share."""

    def __init__(self, ways):
        super().__init__()
        self.layer = nn.Linear(28 * 28, 8)
        self.body = nn.Sequential(nn.Flatten(), self.layer, nn.Tanh())
        self.narrow, self.again, self.head = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, ways)
        self.again.weight = self.narrow.weight

    def forward(self, x):
        return self.head(self.again(self.narrow(self.body(x)).tanh()).tanh())


class Doubling(nn.Module):
    """A layer of nobody's library."""

    def __init__(self, features):
        super().__init__()
        self.gain = nn.Parameter(torch.linspace(0.5, 1.5, features))

    def forward(self, x):
        return 2 * self.gain * torch.tanh(x)


def conv4(ways, **options):
    return Conv4(ways, filters=4, **options)


def mlp(ways):
    return nn.Sequential(nn.Flatten(), nn.Linear(28 * 28, 16), nn.ReLU(), nn.Linear(16, ways))


def custom(ways):
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, stride=4),
        nn.BatchNorm2d(4, track_running_stats=False),
        nn.Flatten(),
        nn.LazyLinear(8),
        Doubling(8),
        nn.Linear(8, ways),
    )


def random_tasks(count, ways, shots, queries, dtype=torch.float64, side=28, channels=1, seed=5, ink=0.2):
    generator = torch.Generator().manual_seed(seed)

    def images(a_class):
        pixels = torch.rand(count, ways * a_class, channels, side, side, generator=generator, dtype=torch.float64)
        return (pixels > 1 - ink).to(dtype)

    def labels(a_class):
        return torch.arange(ways).repeat_interleave(a_class).expand(count, -1)

    return TaskBatch(images(shots), labels(shots), images(queries), labels(queries), ways)


def learner_pair(make, ways, dtype=torch.float64, **options):
    torch.manual_seed(0)
    module = make(ways)
    module(torch.rand(2, 1, 28, 28))  # lazy layers take their size
    loop = LoopMAML(module.to(dtype), lr=0.4, **options)
    vectorized = VectorizedMAML(make(ways), lr=0.4, **options)
    vectorized.module(torch.rand(2, 1, 28, 28))
    vectorized.to(dtype).load_state_dict(loop.state_dict())
    return loop, vectorized


def gradient(learner):
    return torch.cat([parameter.grad.flatten() for parameter in learner.parameters()])


def relative_error(found, expected):
    return ((found - expected).norm() / expected.norm()).item()


SETTINGS = pytest.mark.parametrize(
    ("ways", "shots", "queries"), [(5, 1, 1), (5, 5, 2), (20, 1, 1), (20, 5, 1)], ids=["5w1s", "5w5s", "20w1s", "20w5s"]
)
ORDERS = pytest.mark.parametrize("first_order", [False, True], ids=["second", "first"])


@SETTINGS
@ORDERS
@pytest.mark.parametrize("steps", [1, 5])
def test_engines_agree_in_float64(ways, shots, queries, first_order, steps):
    tasks = random_tasks(2, ways, shots, queries, side=14)
    loop, vectorized = learner_pair(conv4, ways, first_order=first_order)
    expected, found = loop.meta_gradient(tasks, steps), vectorized.meta_gradient(tasks, steps)
    assert relative_error(gradient(vectorized), gradient(loop)) < 1e-9
    torch.testing.assert_close(found.losses, expected.losses, rtol=1e-9, atol=0)
    assert torch.equal(found.accuracies, expected.accuracies)
    torch.testing.assert_close(
        vectorized.adapt_and_score(tasks, [0, steps]), loop.adapt_and_score(tasks, [0, steps]), rtol=1e-8, atol=1e-9
    )


@ORDERS
def test_engines_agree_on_learned_step_sizes(first_order):
    tasks = random_tasks(2, 5, 1, 2, side=14)
    loop, vectorized = learner_pair(conv4, 5, first_order=first_order)
    for learner in (loop, vectorized):
        learner.learn_inner_lrs(2)
        learner.double().meta_gradient(tasks, 3)
    assert loop.inner_lrs.grad.norm() > 0
    assert relative_error(gradient(vectorized), gradient(loop)) < 1e-9
    with torch.no_grad():
        logits = [learner.adapt_and_score(tasks, [0, 1, 4]) for learner in (loop, vectorized)]
    torch.testing.assert_close(*logits, rtol=1e-8, atol=1e-9)
    assert not logits[0].requires_grad


@SETTINGS
@ORDERS
def test_engines_agree_in_float32(ways, shots, queries, first_order):
    tasks = random_tasks(2, ways, shots, queries, dtype=torch.float32, side=14)
    loop, vectorized = learner_pair(conv4, ways, dtype=torch.float32, first_order=first_order)
    loop.meta_gradient(tasks, 1)
    vectorized.meta_gradient(tasks, 1)
    assert relative_error(gradient(vectorized), gradient(loop)) < 1e-4


@pytest.mark.parametrize("make", [mlp, custom, TwoPlaces])
@ORDERS
@pytest.mark.parametrize("steps", [1, 5])
def test_any_module_is_served(make, first_order, steps):
    tasks = random_tasks(3, 5, 1, 2)
    loop, vectorized = learner_pair(make, 5, first_order=first_order)
    expected, found = loop.meta_gradient(tasks, steps), vectorized.meta_gradient(tasks, steps)
    assert relative_error(gradient(vectorized), gradient(loop)) < 1e-9
    torch.testing.assert_close(found.losses, expected.losses, rtol=1e-9, atol=0)


@pytest.mark.parametrize("downsample", ["stride", "max_pool"])
@pytest.mark.parametrize("side", [28, 21, 5])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("normalisation", ["batch", "support"])
def test_conv4_s_batched_formulation_equals_its_forward(downsample, side, channels, normalisation):
    tasks = random_tasks(2, 3, 2, 2, side=side, channels=channels)
    torch.manual_seed(1)
    loop = LoopMAML(conv4(3, channels=channels, downsample=downsample).double(), lr=0.4)
    vectorized = VectorizedMAML(conv4(3, channels=channels, downsample=downsample).double(), lr=0.4)
    vectorized.load_state_dict(loop.state_dict())
    for learner in (loop, vectorized):
        learner.meta_gradient(tasks, 1, normalisation)
    assert relative_error(gradient(vectorized), gradient(loop)) < 1e-9


@pytest.mark.parametrize("side", [28, 21, 5])
@ORDERS
def test_max_pooling_as_it_is_compiled_takes_the_same_gradients(side, first_order, monkeypatch):
    """Uncompiled, and with so little ink that many maxima are equal: two of equal patches, or four."""
    tasks = random_tasks(3, 5, 1, 2, side=side, ink=0.02)
    loop, vectorized = learner_pair(partial(conv4, downsample="max_pool"), 5, first_order=first_order)
    loop.meta_gradient(tasks, 2)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    monkeypatch.setattr(backbones.F, "max_pool2d", None)
    vectorized.meta_gradient(tasks, 2)
    assert relative_error(gradient(vectorized), gradient(loop)) < 1e-9


@pytest.mark.parametrize("engine", [LoopMAML, VectorizedMAML])
def test_the_result_does_not_depend_on_the_chunk(engine, monkeypatch):
    tasks = random_tasks(5, 5, 1, 1)
    torch.manual_seed(0)
    learner = engine(conv4(5).double(), lr=0.4)
    gradients = []
    for chunk in (1, 2, 5, 8):
        monkeypatch.setattr(learner, "task_chunk", chunk)
        learner.meta_gradient(tasks, 2)
        gradients.append(gradient(learner))
    assert all(relative_error(found, gradients[0]) < 1e-12 for found in gradients[1:])


@ORDERS
@pytest.mark.parametrize(
    ("make", "compile_"),
    [
        (conv4, False),
        pytest.param(conv4, True, marks=pytest.mark.slow),
        pytest.param(mlp, True, marks=pytest.mark.slow),
    ],
    ids=["uncompiled", "compiled", "compiled-mlp"],
)
def test_training_ends_in_the_same_weights(make, compile_, first_order):
    loop, vectorized = learner_pair(make, 5, first_order=first_order)
    vectorized.compiled = compile_
    for learner in (loop, vectorized):
        optimizer = torch.optim.Adam(learner.parameters(), lr=1e-3)
        for iteration in range(50):
            tasks = random_tasks(3, 5, 1, 1, seed=iteration, side=14 if make is conv4 else 28)
            learner.meta_gradient(tasks, 1)
            optimizer.step()
    for found, expected in zip(vectorized.parameters(), loop.parameters(), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


def test_the_vectorized_engine_is_still_learn2learn_s_maml():
    learner = VectorizedMAML(conv4(5), lr=0.1, first_order=True, allow_nograd=True)
    assert isinstance(learner, MAML)
    clone = learner.clone()
    x, y = torch.rand(5, 1, 28, 28), torch.arange(5)
    before = torch.nn.functional.cross_entropy(clone(x), y)
    clone.adapt(before)
    assert torch.nn.functional.cross_entropy(clone(x), y) < before


def graph_nodes(tensor):
    """Names of all nodes of the autograd graph that leads to `tensor`."""
    names, seen, open_nodes = [], set(), [tensor.grad_fn]
    while open_nodes:
        node = open_nodes.pop()
        if node is not None and node not in seen:
            seen.add(node)
            names.append(type(node).__name__)
            open_nodes += [parent for parent, _ in node.next_functions]
    return names


@pytest.mark.parametrize("engine", [LoopMAML, VectorizedMAML])
def test_first_order_builds_no_graph_through_the_inner_loop(engine):
    """The graph of the query loss must not hold the inner gradient: it has the same size for 1 and for 5 steps."""
    sizes = {}
    for first_order in (True, False):
        for steps in (1, 5):
            learner = engine(mlp(5).double(), lr=0.1, first_order=first_order)
            logits = learner.adapt_and_score(random_tasks(2, 5, 1, 1), [steps])
            sizes[first_order, steps] = sum("Relu" in name or "Threshold" in name for name in graph_nodes(logits))
    assert sizes[True, 1] == sizes[True, 5] > 0
    assert sizes[False, 5] > sizes[False, 1] > sizes[True, 1]


@pytest.mark.parametrize("engine", [LoopMAML, VectorizedMAML])
def test_without_gradients_nothing_leads_back_to_the_weights(engine):
    learner = engine(conv4(5).double(), lr=0.4)
    tasks = random_tasks(2, 5, 1, 1)
    with torch.no_grad():
        logits = learner.adapt_and_score(tasks, [0, 2])
    assert not logits.requires_grad
    torch.testing.assert_close(logits, learner.adapt_and_score(tasks, [0, 2]).detach())


def assert_compiled_agrees(make, ways, shots, queries, first_order, steps, dtype, tolerance, learned=False, tasks=5):
    """Four tasks in chunks of two, so that the second chunk runs what the first compiled, and by default an odd one."""
    tasks = random_tasks(tasks, ways, shots, queries, dtype=dtype)
    loop, vectorized = learner_pair(make, ways, dtype=dtype, first_order=first_order)
    if learned:
        for learner in (loop, vectorized):
            learner.learn_inner_lrs(steps)
            learner.to(dtype)
    vectorized.task_chunk, vectorized.compiled = 2, True
    expected, found = loop.meta_gradient(tasks, steps), vectorized.meta_gradient(tasks, steps)
    assert vectorized._pieces.compiled, "it went on uncompiled"
    assert relative_error(gradient(vectorized), gradient(loop)) < tolerance
    torch.testing.assert_close(found.losses, expected.losses, rtol=tolerance, atol=0)
    assert torch.equal(found.accuracies, expected.accuracies)
    again = vectorized.meta_gradient(tasks, steps)
    assert torch.equal(again.losses, found.losses)
    if not learned:  # the pieces serve any number of steps
        loop.meta_gradient(tasks, steps + 2)
        vectorized.meta_gradient(tasks, steps + 2)
        assert relative_error(gradient(vectorized), gradient(loop)) < 10 * tolerance


@ORDERS
def test_compiled_agrees_on_conv4(first_order):
    # no odd task, which has to be compiled anew: that of the network below does
    assert_compiled_agrees(conv4, 5, 1, 1, first_order, 1, torch.float64, 1e-9, tasks=4)


@pytest.mark.slow
@ORDERS
def test_compiled_agrees_on_max_pooling(first_order):
    assert_compiled_agrees(partial(conv4, downsample="max_pool"), 5, 1, 1, first_order, 1, torch.float64, 1e-9)


@pytest.mark.slow
def test_compiled_agrees_on_conv4_in_float32():
    assert_compiled_agrees(conv4, 5, 1, 1, False, 1, torch.float32, 1e-4)


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("normalisation", ["batch", "support"])
def test_compiled_evaluation_agrees(normalisation):
    loop, vectorized = learner_pair(conv4, 5)
    vectorized.compiled = True
    tasks = random_tasks(4, 5, 1, 3)
    expected = loop.adapt_and_score(tasks, [0, 1, 3], normalisation)
    for _ in range(2):  # compiling it, and compiled
        found = vectorized.adapt_and_score(tasks, [0, 1, 3], normalisation)
        torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-9)
    assert vectorized._pieces.compiled == ["outputs", "step"]


@pytest.mark.parametrize(
    ("make", "first_order"),
    [
        (mlp, False),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in [(mlp, True), (custom, True), (custom, False)]),
    ],
)
def test_compiled_agrees_on_any_module_and_on_learned_step_sizes(make, first_order):
    assert_compiled_agrees(make, 5, 1, 2, first_order, 2, torch.float64, 1e-9, learned=True)


@pytest.mark.slow
@SETTINGS
@ORDERS
@pytest.mark.parametrize("steps", [1, 5])
def test_compiled_agrees_everywhere(ways, shots, queries, first_order, steps):
    assert_compiled_agrees(conv4, ways, shots, queries, first_order, steps, torch.float64, 1e-9)


def test_without_a_compiler_training_goes_on_with_a_warning(monkeypatch):
    def no_compiler(*_, **__):
        def call(*_):
            raise RuntimeError("no working C++ compiler\nmore lines")

        return call

    monkeypatch.setattr(torch, "compile", no_compiler)
    tasks = random_tasks(4, 5, 1, 1)
    loop, vectorized = learner_pair(mlp, 5)
    vectorized.compiled = True
    with pytest.warns(UserWarning, match="^going on uncompiled, because compiling failed: no working C\\+\\+ comp"):
        vectorized.meta_gradient(tasks, 1)
    loop.meta_gradient(tasks, 1)
    assert relative_error(gradient(vectorized), gradient(loop)) < 1e-9


@pytest.mark.parametrize(
    ("tasks", "images_a_task", "expected"),
    [(32, 5, 16), (32, 25, 4), (16, 20, 4), (16, 100, 1), (31, 5, 20), (3, 5, 3)],
)
def test_the_default_chunk_divides_the_meta_batch_where_it_can(tasks, images_a_task, expected):
    batch = random_tasks(tasks, images_a_task, 1, 1, side=2)
    assert VectorizedMAML(mlp(5), lr=0.1)._default_chunk(batch) == expected


@pytest.mark.parametrize("wrong", [math.nan, -1.0])
def test_a_gradient_that_is_compiled_wrong_is_not_used(wrong, monkeypatch):
    def miscompile(function, **_):
        def compiled(*arguments):
            first, *others = function(*arguments)
            return {name: wrong * part for name, part in first.items()}, *others

        return compiled

    monkeypatch.setattr(torch, "compile", miscompile)
    tasks = random_tasks(2, 5, 1, 2)
    loop, vectorized = learner_pair(mlp, 5)
    vectorized.compiled = True
    with pytest.warns(UserWarning, match="uncompiled, because compiling failed: a compiled piece is off by"):
        vectorized.meta_gradient(tasks, 1)
    loop.meta_gradient(tasks, 1)
    assert relative_error(gradient(vectorized), gradient(loop)) < 1e-9


def test_bfloat16_products_keep_the_scores_near_those_of_float32():
    tasks = random_tasks(4, 5, 1, 1, dtype=torch.float32)
    exact, rounded = learner_pair(conv4, 5, dtype=torch.float32)
    expected = exact.adapt_and_score(tasks, [0, 1])
    rounded.module.product_dtype = torch.bfloat16
    found = rounded.adapt_and_score(tasks, [0, 1])
    assert found.dtype == torch.float32
    assert 1e-5 < relative_error(found, expected) < 0.1
