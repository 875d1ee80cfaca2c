"""Batches of tasks from tensors, from single tasks and from learn2learn; tasks of unequal size; what is refused."""

import dataclasses
import math
import random
import re

import learn2learn as l2l
import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from maml_l2l.algorithms import ENGINES
from maml_l2l.system.errors import UserError
from maml_l2l.tasks.batch import TaskBatch
from tests import reference
from tests.test_meta_gradient import FILTERS, LR, WAYS, SmallNet

TENSORS = ("support", "support_labels", "query", "query_labels")


def make_task(shots, queries, seed, shape=(1, 8, 8)):
    """The tensors of one task; shots: images of each class; queries: of all classes."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(len(shots)).repeat_interleave(torch.tensor(shots))
    labels = labels[torch.randperm(len(labels), generator=generator)]
    query_labels = torch.randint(len(shots), (queries,), generator=generator)
    support, query = (torch.rand(n, *shape, generator=generator, dtype=torch.float64) for n in (len(labels), queries))
    return support, labels, query, query_labels


SIZES = [([1, 3, 2], 5), ([2, 2, 2], 5), ([1, 1, 1], 5), ([1, 1, 1], 2)]
UNEQUAL = [make_task(*size, seed) for seed, size in enumerate(SIZES)]


def same(batch, task):
    return all(torch.equal(getattr(batch, name)[0], tensor) for name, tensor in zip(TENSORS, task, strict=True))


def valid(**changes):
    """Two tasks of 3 ways with 1 support image and 2 queries per class, less what `changes` says."""
    labels = torch.arange(3)
    tensors = {
        "support": torch.rand(2, 3, 1, 4, 4),
        "support_labels": labels.expand(2, -1),
        "query": torch.rand(2, 6, 1, 4, 4),
        "query_labels": labels.repeat(2).expand(2, -1),
        "ways": 3,
    }
    return TaskBatch(**tensors | changes)


def test_single_tasks_become_a_batch_and_come_out_of_it_as_they_were():
    batch = TaskBatch.stack(UNEQUAL)
    assert (len(batch), batch.ways) == (4, 3)
    for index, (one, task) in enumerate(zip(batch, UNEQUAL, strict=True)):
        assert (len(one), one.ways, one.sizes) == (1, 3, None)
        assert same(one, task)
        assert same(batch[index - 4], task)
    again = TaskBatch.stack([batch[:2], batch[2], batch[3:]])
    assert all(same(one, task) for one, task in zip(again, UNEQUAL, strict=True))
    with pytest.raises(IndexError):
        batch[4]


def test_chunks_hold_neighbours_of_equal_size_without_padding():
    batch = TaskBatch.stack([*UNEQUAL[:2], *UNEQUAL[:2], *UNEQUAL[2:]])
    for size, lengths in ((1, [1] * 6), (3, [3, 1, 1, 1]), (10, [4, 1, 1])):
        chunks = list(batch.chunks(size))
        assert [len(chunk) for chunk in chunks] == lengths
        assert not any(tensor.isnan().any() for chunk in chunks for tensor in (chunk.support, chunk.query))
        assert [chunk.support.shape[1] for chunk in chunks[-3:]] == [6, 3, 3]
    assert next(batch.chunks(4)).sizes is None


def test_tasks_of_equal_size_are_stored_without_sizes_and_sliced_ones_lose_them():
    assert TaskBatch.stack(UNEQUAL[:2]).sizes is None
    batch = TaskBatch.stack(UNEQUAL)
    assert batch[:2].sizes is None and batch[:2].support.shape[1] == 6
    assert batch[2:].sizes is not None and batch[2:].support.shape[1] == 3
    assert len(batch[4:]) == 0


def test_padding_taken_for_images_gives_no_numbers():
    """Whoever forgets about the sizes must see that, not a number that is a little off."""
    batch = TaskBatch.stack(UNEQUAL)
    assert batch.support[2:, 3:].isnan().all()
    assert (batch.support_labels[2:, 3:] == -1).all()


def test_to_converts_images_and_real_targets_and_keeps_the_sizes():
    batch = TaskBatch.stack(UNEQUAL).to(dtype=torch.float32)
    assert (batch.query.dtype, batch.query_labels.dtype) == (torch.float32, torch.int64)
    assert batch.sizes == TaskBatch.stack(UNEQUAL).sizes
    targets = TaskBatch(torch.rand(1, 2, 1), torch.rand(1, 2, 1), torch.rand(1, 3, 1), torch.rand(1, 3, 1))
    assert targets.to(dtype=torch.float64).query_labels.dtype == torch.float64


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("task_chunk", [None, 3])
def test_the_meta_gradient_of_unequal_tasks_is_the_mean_over_single_ones(engine, task_chunk):
    net = reference.ReferenceNet(WAYS, FILTERS, seed=3)
    learner = ENGINES[engine](SmallNet().double(), lr=LR)
    learner.module.load_state_dict({name: value.detach() for name, value in net.parameters.items()})
    learner.task_chunk = task_chunk
    scores = learner.meta_gradient(TaskBatch.stack(UNEQUAL), 2)
    losses = [reference.query_loss(net.parameters, TaskBatch.of_task(*task), LR, 2) for task in UNEQUAL]
    expected = torch.autograd.grad(torch.stack(losses).mean(), list(net.parameters.values()))
    found = dict(learner.module.named_parameters())
    for name, gradient in zip(net.parameters, expected, strict=True):
        assert torch.allclose(found[name].grad, gradient, rtol=1e-9, atol=1e-12), name
    assert scores.losses.tolist() == pytest.approx([loss.item() for loss in losses], rel=1e-9)


@pytest.mark.parametrize("engine", ENGINES)
def test_tasks_of_unequal_ways_are_scored_over_their_own_classes(engine):
    learner = ENGINES[engine](SmallNet().double(), lr=LR)
    tasks = [make_task([1, 2], 4, 5), make_task([1, 1, 1], 4, 6)]
    batch = TaskBatch.stack(tasks)
    assert (batch.ways, batch[0].ways, batch[1].ways) == (3, 2, 3)
    losses = learner.meta_gradient(batch, 1).losses
    alone = [learner.meta_gradient(TaskBatch.of_task(*task), 1).losses.item() for task in tasks]
    assert losses.tolist() == pytest.approx(alone, rel=1e-9)


def test_ways_are_counted_where_they_are_not_given():
    assert valid(ways=None).ways == 3
    assert TaskBatch.of_task(*UNEQUAL[0]).ways == 3


@pytest.mark.parametrize("shape", [(), (1,), (2, 3)])
@pytest.mark.parametrize("engine", ENGINES.values())
def test_outputs_of_any_shape_are_filled_up_to_the_most_queries(engine, shape):
    generator, count = torch.Generator().manual_seed(0), math.prod(shape)
    learner = engine(nn.Sequential(nn.Linear(3, count), nn.Unflatten(1, shape) if shape else nn.Flatten(0)), lr=0.1)
    learner.loss = nn.functional.mse_loss

    def task(queries):
        given = (torch.randn(n, *of, generator=generator) for n in (4, queries) for of in ((3,), shape))
        return TaskBatch.of_task(*given)

    alone = [task(2), task(2), task(5)]
    found = learner.adapt_and_score(TaskBatch.stack(alone), [0, 2])
    assert found.shape == (2, 3, 5, *shape)
    for index, one in enumerate(alone):
        expected = learner.adapt_and_score(one, [0, 2])[:, 0]
        torch.testing.assert_close(found[:, index, : expected.shape[1]], expected, rtol=1e-5, atol=1e-6)
    assert found[:, :2, 2:].isnan().all() and not found[:, 2].isnan().any()


@pytest.mark.parametrize("shape", [(), (1,), (2, 3)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_targets_of_a_regression_pass_as_they_are(shape, dtype):
    targets = torch.randn(4, 5, *shape, dtype=dtype), torch.randn(4, 7, *shape, dtype=dtype)
    tasks = TaskBatch(torch.randn(4, 5, 1), targets[0], torch.randn(4, 7, 1), targets[1])
    assert tasks.ways is None
    assert torch.equal(next(tasks[2:].chunks(1)).query_labels, targets[1][2:3])
    longer = TaskBatch.of_task(
        torch.randn(9, 1),
        targets[0][0, :1].repeat_interleave(9, 0),
        *(
            torch.randn(2, 1),
            targets[1][0, :2],
        ),
    )
    stacked = TaskBatch.stack([tasks, longer])
    assert (stacked.ways, len(stacked)) == (None, 5)
    assert torch.equal(stacked[0].support_labels, targets[0][:1])


def test_masks_of_integers_are_targets_too():
    masks = torch.zeros(1, 2, 4, 4, dtype=torch.int64)
    assert TaskBatch(torch.rand(1, 2, 1, 4, 4), masks, torch.rand(1, 2, 1, 4, 4), masks).ways is None


IMAGES = torch.rand(2, 3, 1, 4, 4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"support": [1.0]}, "support: expected a tensor, found list. torch.as_tensor makes one."),
        ({"support": torch.rand(3)}, "support: expected the shape (T, n, ...) of one image or more, found (3,)."),
        (
            {"query": torch.rand(2, 0, 1, 4, 4)},
            "query: expected the shape (T, n, ...) of one image or more, found (2, 0",
        ),
        (
            {"support": (255 * IMAGES).to(torch.uint8)},
            "support: expected floating-point images, found uint8. Divide by 255, as in images / 255.",
        ),
        (
            {"query": torch.zeros(2, 6, 1, 4, 4, dtype=torch.int64)},
            "query: expected floating-point images, found int64.",
        ),
        (
            {"support": IMAGES[:1]},
            "expected as many tasks in each tensor, found support (1, 3, 1, 4, 4), support_labels",
        ),
        (
            {"support": IMAGES[:, :2]},
            "expected a label for each image, found support (2, 2, 1, 4, 4), support_labels (2",
        ),
        ({"query_labels": torch.zeros(2, 5, dtype=torch.int64)}, "expected a label for each image, found support"),
        (
            {"support": IMAGES[..., :3]},
            "expected images of one shape in support and query, found support (2, 3, 1, 4, 3)",
        ),
        ({"support": IMAGES.double()}, "expected images of one dtype, found float64 in support, float32 in query."),
        (
            {"support_labels": torch.zeros(2, 3, 1, dtype=torch.int64)},
            "expected labels of one shape in support and query, found support (2, 3, 1, 4, 4), support_labels",
        ),
        ({"support": IMAGES.to("meta")}, "expected all tensors on one device, found cpu and meta."),
        (
            {"support_labels": torch.zeros(2, 3), "query_labels": torch.zeros(2, 6)},
            "labels: expected int64 of the shape (T, n), found float32 of the shape (2, 3). labels.long() makes int64;",
        ),
        (
            {name: torch.zeros(2, n, dtype=torch.int32) for name, n in (("support_labels", 3), ("query_labels", 6))}
            | {"ways": None},
            "labels: expected int64 of the shape (T, n), found int32",
        ),
        ({"ways": 2}, "support_labels: expected 0 to 1 for 2 ways, found 2 in task 0. Number the classes of each task"),
        (
            {"query_labels": torch.tensor([[0, 1, 2, 0, 1, 2], [0, 1, 2, 0, -1, 2]])},
            "query_labels: expected 0 to 2 for 3 ways, found -1 in task 1.",
        ),
        ({"ways": 4}, "support_labels: 3 images are too few for 4 ways. Give each class one or more. Number"),
        (
            {"support_labels": torch.tensor([[0, 1, 2], [0, 2, 2]])},
            "support_labels: task 1 has no image of class 1 of its 3 ways. Give each class one or more.",
        ),
        ({"support_labels": torch.full((2, 3), 10**12), "ways": None}, "3 images are too few for 1000000000001 ways."),
        ({"ways": 0}, "ways: expected a number of classes, found 0."),
        ({"ways": 3.0}, "ways: expected a number of classes, found 3.0."),
    ],
)
def test_what_is_no_batch_is_refused(changes, message):
    with pytest.raises(UserError, match=re.escape(message)):
        valid(**changes)


def test_a_single_task_is_checked_before_it_gets_its_dimension():
    support, labels, query, query_labels = UNEQUAL[0]
    with pytest.raises(
        UserError, match=r"expected a label for each image, found support \(6, 1, 8, 8\), support_labels"
    ):
        TaskBatch.of_task(support, labels[:5], query, query_labels)
    with pytest.raises(UserError, match=r"support: expected a tensor, found ndarray"):
        TaskBatch.of_task(support.numpy(), labels, query, query_labels)


def test_tasks_of_other_kinds_are_not_stacked():
    message = (
        r"found images \(1, 8, 8\) float64 with class labels \(\) int64 on cpu first, and at 1 images \(3, 8, 8\) "
        "float64 with class labels"
    )
    with pytest.raises(UserError, match=message):
        TaskBatch.stack([UNEQUAL[0], make_task([1, 1], 2, 0, shape=(3, 8, 8))])
    regression = tuple(torch.rand(2, *shape, dtype=torch.float64) for shape in ((1, 8, 8), (), (1, 8, 8), ()))
    with pytest.raises(UserError, match=r"and at 1 images .* with targets \(\) float64 on cpu"):
        TaskBatch.stack([UNEQUAL[0], regression])
    with pytest.raises(UserError, match=r"there are no tasks to stack. Give one or more."):
        TaskBatch.stack([])


def test_the_checks_can_be_left_out_and_do_not_come_back():
    tasks = valid(query_labels=torch.full((2, 6), -1), check=False)
    assert (next(tasks.to("cpu").chunks(1)).query_labels == -1).all()
    with pytest.raises(UserError, match="query_labels: expected 0 to 2"):
        dataclasses.replace(tasks)


def taskset(*transforms, classes=6, images=8, ways=3, per_class=5):
    """A learn2learn Taskset of images that hold their class and their place in it."""
    labels = torch.arange(classes).repeat_interleave(images)
    pixels = torch.stack([labels, torch.arange(images).repeat(classes)], dim=1) / 10
    dataset = l2l.data.MetaDataset(TensorDataset(pixels, labels))
    drawn = [l2l.data.transforms.NWays(dataset, ways), l2l.data.transforms.KShots(dataset, per_class)]
    return l2l.data.Taskset(dataset, [*drawn, *(transform(dataset) for transform in transforms)])


LOADED = (l2l.data.transforms.LoadData, l2l.data.transforms.RemapLabels)


@pytest.mark.parametrize("sorting", [(), (l2l.data.transforms.ConsecutiveLabels,)])
def test_tasks_of_learn2learn_are_split_into_support_and_queries(sorting):
    random.seed(3)
    tasks = TaskBatch.from_taskset(taskset(*LOADED, *sorting), 4, shots=2)
    random.seed(3)
    drawn = taskset(*LOADED, *sorting).sample()
    assert (len(tasks), tasks.ways, tasks.support.shape, tasks.query.shape) == (4, 3, (4, 6, 2), (4, 9, 2))
    for one in tasks:
        images = torch.cat([one.support[0], one.query[0]])
        labels = torch.cat([one.support_labels[0], one.query_labels[0]])
        assert len({tuple(image) for image in images.tolist()}) == 15, "an image appears twice"
        pairs = {(round(10 * image[0]), label) for image, label in zip(images.tolist(), labels.tolist(), strict=True)}
        assert len(pairs) == 3, "a class and a label belong together"
        assert torch.bincount(one.support_labels[0]).tolist() == [2, 2, 2]
        assert torch.bincount(one.query_labels[0]).tolist() == [3, 3, 3]
    first_of_each = {label: [] for label in range(3)}
    for image, label in zip(*drawn, strict=True):
        first_of_each[label.item()].append(image)
    for label, images in first_of_each.items():
        assert torch.equal(tasks.support[0][tasks.support_labels[0] == label], torch.stack(images[:2]))


def test_tasks_of_learn2learn_that_do_not_serve_are_refused():
    load, remap = LOADED
    with pytest.raises(UserError, match=r"shots: expected 1 to 4, because a class of the task has 5 images .* found 5"):
        TaskBatch.from_taskset(taskset(load, remap), 1, shots=5)
    with pytest.raises(
        UserError, match=r"Number the classes of each task from 0, as learn2learn's RemapLabels does\.$"
    ):
        for _ in range(20):  # now and then it draws classes 0, 1 and 2
            TaskBatch.from_taskset(taskset(load), 1, shots=1)
    unloaded = taskset()
    unloaded.task_collate = lambda indices: [indices]
    with pytest.raises(UserError, match=r"expected tasks of two tensors, .* found list. End the Taskset's transforms"):
        TaskBatch.from_taskset(unloaded, 1, shots=1)


def test_a_learner_trains_on_tasks_of_learn2learn():
    torch.manual_seed(0)
    learner = ENGINES["vectorized"](nn.Sequential(nn.Linear(2, 3)), lr=0.1)
    scores = learner.meta_gradient(TaskBatch.from_taskset(taskset(*LOADED), 4, shots=2), 1)
    assert scores.losses.shape == (4,)
    assert scores.losses.isfinite().all()
