"""Labelled images keep their promises, and the cache of decoded ones serves what was put in or makes it anew."""

import pytest
import torch

from maml_l2l.data.labelled_images import LabelledImages, cached
from maml_l2l.system.errors import UserError
from tests.images import numbered_images


@pytest.fixture
def images():
    return numbered_images(classes=3, images_a_class=2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pixels": torch.zeros(6, 1, 4, 4)}, r"pixels: expected \(N, C, H, W\) uint8, found \(6, 1, 4, 4\) float32"),
        (
            {"pixels": torch.zeros(5, 1, 4, 4, dtype=torch.uint8)},
            r"labels: expected \(5,\) int64, .* \(6,\) int64",
        ),
        ({"labels": torch.tensor([7, 7, 13, 15, 13, 15])}, r"labels: expected them in ascending order. labels.sort"),
        (
            {"labels": torch.tensor([0, 0, 1, 1, 3, 3])},
            r"labels: expected 0 to 2, for 3 class_names, found 0 to 3",
        ),
        ({"class_names": ("b", "a", "c")}, r"class_names: expected different strings, sorted"),
        ({"parts": ("train", "test")}, r"parts: expected train, val or test for each of the 3 classes"),
        ({"parts": ("train", "test", "valid")}, r"parts: expected train, val or test for each of the 3 classes"),
    ],
)
def test_images_that_break_a_promise_are_refused(images, change, message):
    with pytest.raises(UserError, match=message):
        LabelledImages(**vars(images) | change)


def refuse():
    pytest.fail("made anew")


def same(one, other):
    tensors = torch.equal(one.pixels, other.pixels) and torch.equal(one.labels, other.labels)
    return tensors and one.class_names == other.class_names


def test_what_is_cached_is_not_made_again_until_its_source_changes(images, tmp_path):
    path = tmp_path / "cache.pt"
    assert same(cached(path, "source", lambda: images), images)
    assert same(cached(path, "source", refuse), images)
    other = numbered_images(classes=2, images_a_class=2)
    assert same(cached(path, "another source", lambda: other), other)


@pytest.mark.parametrize(
    "change",
    [
        {"pixels": torch.zeros(6, 1, 4, 4)},
        {"pixels": torch.zeros(6, 4, 4, dtype=torch.uint8)},
        {"pixels": torch.zeros(5, 1, 4, 4, dtype=torch.uint8)},
        {"pixels": [1]},
        {"labels": torch.tensor([0, 0, 1, 1, 2, 3])},
        {"labels": torch.tensor([0, 0, 1, 1, 2, -1])},
        {"labels": torch.tensor([0, 1, 0, 1, 2, 2])},
        {"labels": torch.tensor([0, 0, 1, 1, 2, 2], dtype=torch.int32)},
        {"class_names": ["class000", "class001", "class001"]},
        {"class_names": ["class001", "class000", "class002"]},
        {"class_names": ["class000", "class001", 2]},
        {"class_names": None},
    ],
    ids=str,
)
def test_a_cache_that_breaks_a_promise_of_labelled_images_is_made_anew(images, tmp_path, change):
    path = tmp_path / "cache.pt"
    cached(path, "source", lambda: images)
    torch.save(torch.load(path, weights_only=True) | change, path)
    assert same(cached(path, "source", lambda: images), images)
    assert same(cached(path, "source", refuse), images)


def test_a_cache_with_a_flipped_bit_is_made_anew(images, tmp_path):
    path = tmp_path / "cache.pt"
    cached(path, "source", lambda: images)
    content = bytearray(path.read_bytes())
    content[content.index(images.pixels.numpy().tobytes()) + 2] ^= 1
    path.write_bytes(content)
    assert same(cached(path, "source", lambda: images), images)
