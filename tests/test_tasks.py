"""Properties of the task stream, on images that carry their own identity."""

import random
import threading
from concurrent.futures import ThreadPoolExecutor

import learn2learn as l2l
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F
from torch.utils.data import TensorDataset

from maml_l2l.data.labelled_images import LabelledImages
from maml_l2l.system.errors import UserError
from maml_l2l.tasks.stream import TaskStream
from tests.images import identities, numbered_images

CLASSES, IMAGES = 12, 8
DATA = numbered_images(CLASSES, IMAGES)
sizes = st.fixed_dictionaries({"ways": st.integers(2, 6), "shots": st.integers(1, 4), "queries": st.integers(1, 4)})
keys = st.fixed_dictionaries({"seed": st.integers(0, 2**32), "split": st.sampled_from(["train", "val", "test"])})


def stream(ways=3, shots=2, queries=2, seed=0, split="train", rotate=True, classes=DATA.class_names, **options):
    images = options.pop("images", DATA)
    sizes = {"ways": ways, "shots": shots, "queries": queries}
    return TaskStream(images, list(classes), split=split, rotate=rotate, seed=seed, **sizes, **options)


@given(sizes, keys, st.integers(0, 10**6))
@settings(max_examples=60, deadline=None)
def test_a_task_is_well_formed(size, key, index):
    ways, shots, queries = size["ways"], size["shots"], size["queries"]
    tasks = stream(**size, **key).batch(index, 2)
    assert tasks.support.shape == (2, ways * shots, 1, 4, 4)
    assert tasks.query.shape == (2, ways * queries, 1, 4, 4)
    for labels, count in ((tasks.support_labels, shots), (tasks.query_labels, queries)):
        assert labels.dtype == torch.int64
        assert all(torch.bincount(row, minlength=ways).tolist() == [count] * ways for row in labels)
    for support, support_labels, query, query_labels in zip(
        identities(tasks.support), tasks.support_labels, identities(tasks.query), tasks.query_labels, strict=True
    ):
        drawn = [tuple(image) for image in torch.cat([support, query])[:, :2].tolist()]
        assert len(set(drawn)) == len(drawn), "an image appears twice in a task"
        class_of = {}
        for (name, _, turns), label in zip(
            torch.cat([support, query]).tolist(), torch.cat([support_labels, query_labels]).tolist(), strict=True
        ):
            assert class_of.setdefault(label, (name, turns)) == (name, turns), "one class and one rotation a label"
        assert len({name for name, _ in class_of.values()}) == ways


@given(keys, st.integers(0, 10**6), st.integers(0, 20))
@settings(max_examples=40, deadline=None)
def test_the_stream_is_a_pure_function_of_its_key(key, start, offset):
    whole = stream(**key).batch(start, offset + 1)
    alone = stream(**key).batch(start + offset, 1)
    assert torch.equal(whole.support[offset], alone.support[0])
    assert torch.equal(whole.query[offset], alone.query[0])


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_the_same_whoever_draws_them(workers):
    torch.manual_seed(0)
    expected_number = torch.rand(1)
    torch.manual_seed(0)
    tasks = stream(shift=1)
    starts = range(7, 40, 5)
    found = list(tasks.batches(starts, 3, torch.device("cpu"), workers))
    assert len(found) == len(starts)
    for start, batch in zip(starts, found, strict=True):
        expected = tasks.batch(start, 3)
        for name in ("support", "support_labels", "query", "query_labels"):
            assert torch.equal(getattr(batch, name), getattr(expected, name)), name
    assert torch.equal(torch.rand(1), expected_number), "it drew from the global generator"


def test_other_seeds_splits_and_indices_give_other_tasks():
    first = stream().batch(0, 20).support
    assert not torch.equal(first, stream(seed=1).batch(0, 20).support)
    assert not torch.equal(first, stream(split="val").batch(0, 20).support)
    assert not torch.equal(first, stream().batch(1, 20).support)


@given(sizes, keys, st.integers(0, 1000))
@settings(max_examples=30, deadline=None)
def test_classes_and_images_are_those_that_learn2learn_draws(size, key, index):
    """By its own transforms, from Python's global generator, seeded by the task's key."""
    members = {label: list(range(IMAGES * label, IMAGES * label + IMAGES)) for label in range(CLASSES)}
    dataset = l2l.data.MetaDataset(TensorDataset(DATA.pixels, DATA.labels), labels_to_indices=members)
    per_class = size["shots"] + size["queries"]
    transforms = [l2l.data.transforms.NWays(dataset, size["ways"]), l2l.data.transforms.KShots(dataset, per_class)]
    state = random.getstate()
    random.seed(f"{key['seed']}/{key['split']}/{index}")
    drawn = l2l.data.Taskset(dataset, transforms, task_collate=torch.tensor)[0]
    random.setstate(state)
    expected = DATA.pixels[drawn].unflatten(0, (size["ways"], per_class))
    assert torch.equal(stream(**size, **key, rotate=False).draw(index, 1)[0][0], expected)


def test_threads_draw_the_same_tasks_while_others_use_random():
    tasks, done = stream(shift=1), threading.Event()
    expected = [tasks.draw(index, 1)[0] for index in range(200)]

    def disturb():
        while not done.is_set():
            random.seed(0)
            random.random()

    with ThreadPoolExecutor(4) as pool:
        pool.submit(disturb)
        found = list(pool.map(lambda index: tasks.draw(index, 1)[0], range(200)))
        done.set()
    assert all(map(torch.equal, found, expected))


@given(st.integers(0, 1000))
@settings(max_examples=20, deadline=None)
def test_other_code_neither_disturbs_the_stream_nor_is_disturbed_by_it(seed):
    expected_tasks = stream().batch(0, 3).support
    random.seed(seed)
    expected_numbers = [random.random() for _ in range(4)]
    random.seed(seed)
    numbers = [random.random(), random.random()]
    assert torch.equal(stream().batch(0, 3).support, expected_tasks)
    numbers += [random.random(), random.random()]
    assert numbers == expected_numbers


def test_labels_are_shuffled_against_the_order_of_the_classes():
    tasks = identities(stream(ways=2, shots=1).batch(0, 200).support)
    ascending = (tasks[:, 0, 0] < tasks[:, 1, 0]).float().mean().item()
    assert 0.35 < ascending < 0.65


def test_rotations_are_drawn_for_each_class_and_uniformly():
    turns = identities(stream(ways=4, shots=1).batch(0, 200).support)[..., 2]
    counts = torch.bincount(turns.flatten(), minlength=4)
    assert counts.min() > 150, counts
    assert (turns != turns[:, :1]).any(1).float().mean() > 0.9, "all classes of a task share an angle"


def test_without_rotation_images_stay_upright():
    assert identities(stream(rotate=False).batch(0, 20).support)[..., 2].eq(0).all()


def test_each_training_image_is_moved_by_its_own_draw_and_its_border_fills_the_rest():
    drawn = torch.randint(256, (CLASSES * IMAGES, 3, 9, 7), generator=torch.manual_seed(0), dtype=torch.uint8)
    images = LabelledImages(drawn, DATA.labels, DATA.class_names)
    unmoved, moved = (stream(images=images, rotate=False, shift=shift).batch(0, 40) for shift in (0, 2))
    for still, other in ((unmoved.support, moved.support), (unmoved.query, moved.query)):
        padded = F.pad(still.flatten(0, 1), (2, 2, 2, 2), mode="replicate")
        windows = padded.unfold(2, 9, 1).unfold(3, 7, 1)  # (N, C, down, across, H, W)
        same = (windows == other.flatten(0, 1)[:, :, None, None]).all(-1).all(-1).all(1)
        assert same.flatten(1).sum(1).eq(1).all(), "an image is not its original, moved"
        counts = same.sum(0).float() / len(same)
        assert counts.min() > 0.2 / 25, "moves are not drawn evenly"
        assert counts.max() < 2 / 25, "moves are not drawn evenly"


def test_only_the_named_classes_are_drawn():
    drawn = identities(stream(classes=DATA.class_names[3:7]).batch(0, 50).support)[..., 0]
    assert set(drawn.flatten().tolist()) == {3, 4, 5, 6}


def test_pixels_reach_the_task_as_floats_between_0_and_1():
    images = stream().batch(0, 1).support
    assert images.dtype == torch.float32
    assert images.max() == 1.0
    assert images.min() == 0.0


def test_chunks_are_the_same_tasks_in_order():
    tasks = stream().batch(0, 5)
    chunks = list(tasks.chunks(2))
    assert [len(chunk) for chunk in chunks] == [2, 2, 1]
    assert torch.equal(torch.cat([chunk.query for chunk in chunks]), tasks.query)


def test_classes_that_are_not_there_are_refused():
    with pytest.raises(UserError, match=r"classes: there are no images of cat, dog. Known are .* and 2 more"):
        stream(classes=[*DATA.class_names[:4], "dog", "cat"])
    with pytest.raises(UserError, match=r"classes: expected a list of names, such as \['ant'\], found 'ant'"):
        TaskStream(DATA, "ant", split="train", rotate=False, seed=0, ways=2, shots=1, queries=1)


def test_too_many_ways_are_refused():
    with pytest.raises(UserError, match=r"task.ways is 13, but the train split holds 12 of the 12 classes"):
        stream(ways=13)


def test_too_many_images_a_class_are_refused():
    with pytest.raises(UserError, match=r"task.shots \+ task.queries is 5 \+ 4 = 9.*12 of the 12.*class000 \(8\)"):
        stream(shots=5, queries=4)


def uneven(small):
    """`DATA` less all but two images of the first `small` classes."""
    kept = (DATA.labels >= small) | (torch.arange(len(DATA.labels)) % IMAGES < 2)
    return LabelledImages(DATA.pixels[kept], DATA.labels[kept], DATA.class_names)


def test_classes_with_too_few_images_are_listed_with_their_counts():
    message = (
        r"task.shots \+ task.queries is 2 \+ 2 = 4, but 11 of the 12 classes of the val split hold fewer images: "
        r"class000 \(2\), class001 \(2\), .*class009 \(2\) and 1 more. Lower .* data.drop_small_classes: true"
    )
    with pytest.raises(UserError, match=message):
        stream(images=uneven(11), split="val")


def test_dropping_small_classes_says_so_and_leaves_the_others(caplog):
    tasks = stream(images=uneven(3), drop_small=True)
    assert "drops classes: 3 of the 12 classes of the train split hold fewer images: class000" in caplog.text
    drawn = identities(tasks.batch(0, 60).support)[..., 0]
    assert set(drawn.flatten().tolist()) == set(range(3, 12))


def test_too_few_classes_left_after_dropping_are_refused():
    with pytest.raises(UserError, match=r"task.ways is 3, but the train split holds 2 of the 12 classes"):
        stream(images=uneven(10), drop_small=True)


def test_a_split_without_classes_is_refused():
    with pytest.raises(UserError, match=r"task.ways is 3, but the test split holds 0 of the 12 classes"):
        stream(classes=[], split="test")
