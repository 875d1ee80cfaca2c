"""The embedded data set: the same drawings everywhere, and as hard as Omniglot without learning."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import zipfile
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from maml_l2l.data import glyphs
from maml_l2l.data.glyphs import alphabet_sizes, load_glyphs
from maml_l2l.data.ink import ink_pixels
from maml_l2l.data.labelled_images import LabelledImages
from maml_l2l.system.errors import UserError

OMNIGLOT = Path(__file__).parents[2] / "shared" / "data"
OMNIGLOT_ACCURACY = 46.6  # per cent, of `nearest_neighbour_accuracy` on all of Omniglot
OMNIGLOT_INK = 0.081  # share of ink in Omniglot's 28x28 images


@pytest.fixture(scope="module")
def twelve(tmp_path_factory: pytest.TempPathFactory) -> LabelledImages:
    return load_glyphs(tmp_path_factory.mktemp("twelve"), alphabets=12)


@pytest.fixture(scope="module")
def omniglot() -> np.ndarray:
    """(1623, 20, 28, 28), the whole set."""
    drawings = []
    for name in ("images_background.zip", "images_evaluation.zip"):
        archive = OMNIGLOT / "omniglot-28x28" / name
        if not archive.exists():
            pytest.skip(f"real Omniglot is not at {archive}")
        with zipfile.ZipFile(archive) as file:
            names = sorted(name for name in file.namelist() if name.endswith(".png"))
            drawings += [ink_pixels(Image.open(BytesIO(file.read(name)))) for name in names]
    return np.stack(drawings).reshape(-1, 20, 28, 28)


def nearest_neighbour_accuracy(characters: np.ndarray, tasks: int = 1000) -> float:
    """Per cent right: cosine nearest neighbour on raw pixels, 5-way 1-shot, 1 query, a rotation per class."""
    rng = np.random.default_rng(2017)
    right = 0
    for _ in range(tasks):
        classes = rng.choice(len(characters), 5, replace=False)
        pairs = np.empty((2, 5, 784), dtype=np.float32)
        for way, (label, turns) in enumerate(zip(classes, rng.integers(4, size=5), strict=True)):
            writers = rng.choice(20, 2, replace=False)
            pairs[:, way] = np.rot90(characters[label, writers], turns, axes=(1, 2)).reshape(2, 784)
        support, query = pairs / np.linalg.norm(pairs, axis=2, keepdims=True)
        right += int(((query @ support.T).argmax(axis=1) == np.arange(5)).sum())
    return 100 * right / (5 * tasks)


def by_class(images: LabelledImages) -> np.ndarray:
    return images.pixels.numpy().reshape(-1, 20, 28, 28)


def digest(images: LabelledImages) -> str:
    return hashlib.sha256(images.pixels.numpy().tobytes()).hexdigest()


def test_two_processes_draw_the_same_pixels(tmp_path: Path) -> None:
    script = (
        "import hashlib, pathlib, sys; from maml_l2l.data.glyphs import load_glyphs;"
        "pixels = load_glyphs(pathlib.Path(sys.argv[1]), alphabets=1, seed=3).pixels.numpy();"
        "print(hashlib.sha256(pixels.tobytes()).hexdigest())"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "other")]
    other = subprocess.run(command, capture_output=True, text=True, check=True)
    assert other.stdout.strip() == digest(load_glyphs(tmp_path / "own", alphabets=1, seed=3))
    assert "drawing" not in other.stderr  # no progress bar where no terminal is


def test_a_smaller_set_is_the_head_of_a_larger_one(twelve: LabelledImages, tmp_path: Path) -> None:
    two = load_glyphs(tmp_path, alphabets=2)
    assert torch.equal(two.pixels, twelve.pixels[: len(two.pixels)])
    assert torch.equal(two.labels, twelve.labels[: len(two.labels)])
    assert two.class_names == twelve.class_names[: len(two.class_names)]


def test_another_seed_draws_other_characters(twelve: LabelledImages, tmp_path: Path) -> None:
    other = by_class(load_glyphs(tmp_path, alphabets=1, seed=1))
    assert not (other == by_class(twelve)[:33]).all(axis=(1, 2, 3)).any()


def test_all_alphabets_hold_as_many_characters_as_omniglot() -> None:
    sizes = alphabet_sizes(50)
    assert sum(sizes) == 1623
    assert sizes == [33] * 23 + [32] * 27


def test_every_character_has_twenty_images_under_a_sorted_unique_name(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(glyphs, "mapped", lambda function, sizes, at_once: map(function, sizes))
    monkeypatch.setattr(glyphs, "_draw_alphabet", lambda size, **_: np.zeros((size[1] * 20, 28, 28), np.uint8))
    images = load_glyphs(tmp_path, alphabets=50)
    assert images.pixels.shape == (32460, 1, 28, 28)
    assert images.class_sizes() == [20] * 1623
    assert list(images.class_names) == sorted(set(images.class_names))
    assert images.class_names[0] == "Alphabet_01/character01"
    assert images.class_names[-1] == "Alphabet_50/character32"
    assert images.labels.dtype == torch.int64
    assert bool((images.labels.diff() >= 0).all())


def test_no_two_drawings_are_the_same(twelve: LabelledImages) -> None:
    assert len(np.unique(twelve.pixels.reshape(-1, 784).numpy(), axis=0)) == len(twelve.pixels)


def test_pixels_are_ink_or_paper_in_omniglots_shares(twelve: LabelledImages) -> None:
    assert twelve.pixels.dtype == torch.uint8
    assert twelve.pixels.unique().tolist() == [0, 255]
    ink = (twelve.pixels > 0).float().mean(dim=(1, 2, 3))
    assert 0.75 * OMNIGLOT_INK < ink.mean() < 1.25 * OMNIGLOT_INK
    assert ink.min() > 0.01
    assert ink.max() < 0.25


def test_nearest_neighbour_scores_as_on_omniglot(twelve: LabelledImages) -> None:
    assert 40 < nearest_neighbour_accuracy(by_class(twelve)) < 55


def test_the_figures_to_compare_with_are_those_of_omniglot(omniglot: np.ndarray) -> None:
    assert nearest_neighbour_accuracy(omniglot) == pytest.approx(OMNIGLOT_ACCURACY, abs=2.0)
    assert (omniglot > 0).mean() == pytest.approx(OMNIGLOT_INK, abs=0.005)


def test_ink_pixels_give_the_28x28_images_of_the_original_drawings() -> None:
    names = [f"Greek/character{number:02d}/{number + 393:04d}_07.png" for number in range(1, 25)]
    small = OMNIGLOT / "omniglot-small" / "images_background_small1.zip"
    if not small.exists():
        pytest.skip(f"real Omniglot is not at {small}")
    resized = OMNIGLOT / "omniglot-28x28" / "images_background.zip"
    with zipfile.ZipFile(small) as originals, zipfile.ZipFile(resized) as expected:
        for name in names:
            original = Image.open(BytesIO(originals.read(f"images_background_small1/{name}")))
            ink = ~np.asarray(Image.open(BytesIO(expected.read(f"images_background/{name}"))))
            assert original.size == (105, 105)
            assert (ink_pixels(original) == 255 * ink).all(), name


def test_a_second_load_reads_the_cache_and_a_damaged_one_is_drawn_anew(tmp_path: Path, monkeypatch) -> None:
    first = load_glyphs(tmp_path, alphabets=1)
    calls = []
    draw = glyphs._draw_alphabet
    monkeypatch.setattr(glyphs, "_draw_alphabet", lambda *args, **keys: calls.append(1) or draw(*args, **keys))
    assert digest(load_glyphs(tmp_path, alphabets=1)) == digest(first)
    assert calls == []
    cache = tmp_path / "glyphs" / "glyphs-1-0.pt"
    cache.write_bytes(cache.read_bytes()[:1000])
    assert digest(load_glyphs(tmp_path, alphabets=1)) == digest(first)
    assert calls == [1]
    monkeypatch.setattr(glyphs, "DRAWING_VERSION", glyphs.DRAWING_VERSION + 1)
    load_glyphs(tmp_path, alphabets=1)
    assert calls == [1, 1]


@pytest.mark.parametrize("alphabets", [0, -1, 51])
def test_a_number_of_alphabets_out_of_range_is_refused(alphabets: int, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        load_glyphs(tmp_path, alphabets=alphabets)
    assert f"from 1 to 50, found {alphabets}. Set data.alphabets to" in str(caught.value)


def test_ink_pixels_turn_a_grey_picture_black_and_white_without_dither() -> None:
    grey = Image.new("L", (105, 105), 200)
    grey.paste(40, (0, 0, 105, 50))
    pixels = ink_pixels(grey)
    assert pixels.dtype == np.uint8
    assert (pixels[:13] == 255).all()
    assert (pixels[14:] == 0).all()
