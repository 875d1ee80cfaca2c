"""Training drawings as another hand would draw them: seeded like the tasks, and still the same signs."""

import math

import numpy as np
import pytest
import torch
from scipy import ndimage

from maml_l2l.data.glyphs import load_glyphs
from maml_l2l.tasks.augment import DRAWS, augmented, draws
from maml_l2l.tasks.stream import TaskStream


@pytest.fixture(scope="module")
def images(glyphs_root):
    return load_glyphs(glyphs_root, alphabets=1, ink="normalised")


def stream(images, **options):
    sizes = {"ways": 3, "shots": 1, "queries": 2}
    return TaskStream(
        images, list(images.class_names), **{"split": "train", "rotate": True, "seed": 5, **sizes, **options}
    )


def still(count=1, **changes):
    """Draws that change nothing but what `changes` names by column."""
    numbers = torch.zeros(count, DRAWS)
    for column, value in changes.items():
        numbers[:, int(column[1:])] = value
    return numbers


def sign():
    """(1, 1, 28, 28): a filled bar and a dot, in float64."""
    picture = torch.zeros(1, 1, 28, 28, dtype=torch.float64)
    picture[..., 8:20, 9:13] = 1
    picture[..., 10:13, 16:19] = 1
    return picture


def test_a_task_is_a_function_of_seed_split_and_index_alone(images):
    whole = stream(images, augment=1.0).batch(0, 6)
    again = stream(images, augment=1.0)
    for index in (4, 0):
        one = again.batch(index, 1)
        assert torch.equal(one.support[0], whole.support[index]) and torch.equal(one.query[0], whole.query[index])
    batches = list(again.batches([0, 3], 3, torch.device("cpu"), workers=2))
    assert torch.equal(torch.cat([batch.query for batch in batches]), whole.query)


def test_every_image_of_every_task_is_changed_in_its_own_way(images):
    plain, changed = stream(images).batch(0, 4), stream(images, augment=1.0).batch(0, 4)
    assert plain.query.shape == changed.query.shape and torch.equal(plain.query_labels, changed.query_labels)
    assert ((plain.query - changed.query).abs().flatten(2).amax(2) > 0.2).all()
    numbers = stream(images, augment=1.0).draw(0, 4)[1].flatten(0, 2)
    assert len(numbers.unique(dim=0)) == len(numbers) == 4 * 3 * 3
    other = stream(images, augment=1.0, seed=6).draw(0, 4)[1].flatten(0, 2)
    assert not torch.equal(numbers, other)


def test_the_same_classes_and_images_are_drawn_as_without(images):
    plain, augmenting = stream(images), stream(images, augment=1.0)
    assert torch.equal(plain.draw(2, 3)[0], augmenting.draw(2, 3)[0])


def test_strength_zero_is_off_and_more_strength_changes_more(images):
    pixels = images.pixels[::50].float() / 255
    numbers = draws(len(pixels), seed=1)
    changes = [(augmented(pixels, numbers, strength) - pixels).abs().mean() for strength in (0.25, 0.5, 1.0)]
    assert changes == sorted(changes)


@pytest.mark.parametrize("seed", range(3))
def test_the_ink_stays_within_zero_and_one_and_does_not_vanish(images, seed):
    pixels = images.pixels[::20].float() / 255
    found = augmented(pixels, draws(len(pixels), seed))
    assert found.min() >= 0 and found.max() <= 1
    kept = found.sum((1, 2, 3)) / pixels.sum((1, 2, 3))
    assert kept.min() > 0.3 and kept.max() < 2.2


def affine(picture, numbers):
    """SciPy's spline of order 1 in pixels about the middle, from the definition of the change of places."""
    angle, shear, wide, high, right, down = (float(number) for number in numbers[0, :6])
    cosine, sine = math.cos(math.radians(15 * angle)), math.sin(math.radians(15 * angle))
    turn = np.array([[cosine, -sine], [sine, cosine]])
    lean = np.array([[1, 0.2 * shear], [0, 1]])
    size = np.diag([1 / (1 + 0.2 * wide), 1 / (1 + 0.2 * high)])
    linear = size @ turn @ lean  # (x, y) of the result -> (x, y) of the picture
    linear_yx = linear[::-1, ::-1]
    offset = 13.5 - linear_yx @ [13.5, 13.5] + [2 * down, 2 * right]
    return ndimage.affine_transform(picture[0, 0].numpy(), linear_yx, offset, order=1, mode="constant")


@pytest.mark.parametrize("seed", range(4))
def test_places_are_those_of_an_affine_map_by_hand(seed):
    from maml_l2l.tasks.augment import _placement

    numbers = draws(1, seed).double()
    grid = torch.nn.functional.affine_grid(_placement(numbers, 28), [1, 1, 28, 28], align_corners=False)
    found = torch.nn.functional.grid_sample(sign(), grid, align_corners=False)[0, 0].numpy()
    assert found == pytest.approx(affine(sign(), numbers), abs=1e-4)


def test_pen_blur_and_contrast_do_what_they_are_called():
    thin, same, thick = (augmented(sign(), still(c6=value)).sum() for value in (-1, 0, 1))
    assert thin < 0.95 * same and thick > 1.05 * same
    sharp, soft = augmented(sign(), still()), augmented(sign(), still(c7=1))
    assert soft.diff(dim=-1).abs().max() < sharp.diff(dim=-1).abs().max()
    assert augmented(sign(), still(c8=-1)).max() == pytest.approx(0.7)
