"""Prediction for pictures of any origin: how well, how independently, and what is refused."""

import dataclasses
import math
import re
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from maml_l2l.algorithms import VectorizedMAML
from maml_l2l.backbones import register_backbone
from maml_l2l.checkpoints.checkpoint import load_checkpoint
from maml_l2l.config import load_experiment, with_overrides
from maml_l2l.data.glyphs import load_glyphs
from maml_l2l.experiments.training import train
from maml_l2l.prediction import FewShotClassifier
from maml_l2l.system.errors import UserError
from tests.test_training import TINY


@pytest.fixture(scope="module")
def path(glyphs_root, tmp_path_factory):
    folder = tmp_path_factory.mktemp("prediction") / "run"
    settings = ["train.iterations=60", "train.meta_batch=8", "train.meta_lr=1e-2", "train.validate_every=60"]
    train(load_experiment(None, [*TINY, *settings, f"data.root={glyphs_root}"]), folder)
    return folder / "best.pth"


@pytest.fixture(scope="module")
def drawings(glyphs_root):
    """`drawings(class index)`: its 20 glyphs as arrays (28, 28) uint8, dark ink on light paper."""
    pixels = load_glyphs(glyphs_root, alphabets=3).pixels
    return lambda index: list(255 - pixels[20 * index : 20 * index + 20, 0].numpy())


@pytest.fixture
def fitted(path, drawings):
    """Adapted to 1, 3 and 2 drawings of three classes."""
    images = [*drawings(0)[:1], *drawings(1)[:3], *drawings(2)[:2]]
    return FewShotClassifier(path).fit(images, ["b", "a", "a", "a", "c", "c"])


def test_drawings_are_named_well_above_chance(fitted, drawings):
    queries = [drawing for index in range(3) for drawing in drawings(index)[10:]]
    assert fitted.classes_.tolist() == ["a", "b", "c"]
    assert np.mean(fitted.predict(queries) == np.repeat(["b", "a", "c"], 10)) > 0.5


def test_probabilities_sum_to_one_and_predict_takes_the_largest(fitted, drawings):
    probabilities = fitted.predict_proba(drawings(1))
    assert probabilities.shape == (20, 3)
    assert probabilities.sum(1) == pytest.approx(np.ones(20), abs=1e-6)
    assert (fitted.predict(drawings(1)) == fitted.classes_[probabilities.argmax(1)]).all()


def test_several_threads_may_ask_at_once(fitted, drawings):
    queries = [drawings(index)[10:] for index in range(3)]
    expected = [fitted.predict_proba(asked) for asked in queries]
    with ThreadPoolExecutor(6) as threads:
        found = list(threads.map(lambda index: fitted.predict_proba(queries[index % 3][: 10 - index // 3]), range(15)))
    for index, probabilities in enumerate(found):
        np.testing.assert_allclose(probabilities, expected[index % 3][: len(probabilities)], rtol=1e-4, atol=1e-6)


def test_a_picture_is_classified_alike_alone_in_any_order_and_among_others(fitted, drawings, monkeypatch):
    queries = [*drawings(0)[5:8], *drawings(3)[:4], np.full((28, 28), 255, np.uint8)]
    together = fitted.predict_proba(queries)
    alone = np.concatenate([fitted.predict_proba([query]) for query in queries])
    monkeypatch.setattr("maml_l2l.prediction._QUERIES_AT_ONCE", 3)
    for other in (alone, fitted.predict_proba(queries[::-1])[::-1], fitted.predict_proba(queries)):
        assert other == pytest.approx(together, abs=1e-5)
    assert together.std(0).max() > 0.01


def test_it_is_the_network_adapted_by_learn2learn_s_own_calls(fitted, path, drawings):
    """Unequal shots, inductive, one query after another."""
    learner = load_checkpoint(path).learner().clone()
    ink = torch.from_numpy(255 - np.stack([*drawings(0)[:1], *drawings(1)[:3], *drawings(2)[:2]]))[:, None] / 255
    learner.adapt(torch.nn.functional.cross_entropy(learner(ink), torch.tensor([1, 0, 0, 0, 2, 2])))
    queries = drawings(2)[15:]
    for query, found in zip(queries, fitted.predict_proba(queries), strict=True):
        images = torch.cat([ink, torch.from_numpy(255 - query)[None, None] / 255])
        assert found == pytest.approx(learner(images, statistics_from=6)[-1].softmax(0).detach().numpy(), abs=1e-4)


def test_steps_are_those_of_training_unless_others_are_asked_for(path, drawings):
    def probabilities(steps):
        return FewShotClassifier(path, steps).fit(drawings(0)[:3], [1, 2, 3]).predict_proba(drawings(0)[3:])

    assert FewShotClassifier(path).fit(drawings(0)[:2], [1, 2]).steps_ == 1
    assert (probabilities(None) == probabilities(1)).all()
    assert np.abs(probabilities(1) - probabilities(5)).max() > 0.01
    with pytest.raises(UserError, match=r"of the prediction: `algorithm.inner_steps` should be .* 1, found 0"):
        FewShotClassifier(path, steps=0).fit(drawings(0)[:2], [1, 2])


def test_fewer_classes_than_ways_are_served_and_more_are_refused(path, drawings):
    classifier = FewShotClassifier(path).fit(drawings(0)[:4], [0, 1, 0, 1])
    assert classifier.predict_proba(drawings(0)[4:]).shape == (16, 2)
    message = r"head has 3 outputs, so it serves tasks of up to 3 classes, not of 4. Use fewer classes, a network for"
    with pytest.raises(UserError, match=message):
        classifier.fit(drawings(0)[:4], [0, 1, 2, 3])
    assert classifier.classes_.tolist() == [0, 1], "what was refused has changed the classifier"


def test_one_picture_is_the_same_in_every_form(fitted, drawings, tmp_path):
    array = drawings(0)[9]
    file = tmp_path / "picture.png"
    Image.fromarray(array).save(file)
    colour = np.stack([array] * 3, axis=-1)
    forms = [
        [array],
        array[None],
        [colour],
        [array / 255],
        [array > 127],
        torch.from_numpy(array)[None, None],
        torch.from_numpy(array / 255)[None, None].expand(-1, 3, -1, -1),
        [torch.from_numpy(colour).permute(2, 0, 1)],
        [Image.fromarray(array)],
        [Image.fromarray(colour)],
        [file],
        [str(file)],
        (picture for picture in [array]),
    ]
    for images in forms:
        pixels = fitted.pixels(images)
        assert pixels.shape == (1, 1, 28, 28)
        assert (pixels[0, 0].numpy() == 255 - array).all()


@pytest.mark.parametrize(
    "labels",
    [["x", "y", "x"], [7, -3, 7], np.array([2, 1, 2]), torch.tensor([2, 1, 2]), (0.5, 0.25, 0.5), [True, False, True]],
)
def test_labels_of_every_kind_come_back_sorted(path, drawings, labels):
    classifier = FewShotClassifier(path).fit(drawings(0)[:3], labels)
    expected = sorted({label.item() if hasattr(label, "item") else label for label in labels})
    assert classifier.classes_.tolist() == expected
    assert set(classifier.predict(drawings(0)).tolist()) <= set(expected)


BLANK = np.full((28, 28), 255, np.uint8)


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        ([BLANK] * 3, ["a", "b"], "there are 3 images and 2 labels. Give each image one label."),
        ([BLANK] * 2, ["a", "a"], "all labels are 'a'. Give two classes or more."),
        ([], [], "there are no pictures in the list. Give one or more."),
        ([BLANK] * 2, [["a", "b"]], "one for each image; found an array of shape (1, 2)."),
        ([BLANK] * 2, [1, None], "labels[1] is missing (found None). Leave that image out, or name its class."),
        (
            [BLANK] * 2,
            ["a", float("nan")],
            "labels[1] is missing (found nan). Leave that image out, or name its class.",
        ),
        ([BLANK] * 2, [math.nan, 1.0], "labels[0] is missing (found nan)"),
        ([BLANK] * 2, ["a", 2], "labels must be of one kind; found strings, and 2 at 1. str(label) makes one."),
        ([BLANK] * 2, [1, {}], "labels must be a list of strings or integers, one for each image; found what does"),
        ([BLANK] * 2, "ab", "one for each image; found an array of shape ()."),
    ],
)
def test_examples_that_do_not_fit_together_are_refused(path, images, labels, message):
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        FewShotClassifier(path).fit(images, labels)
    assert str(caught.value).count("labels") <= 1, "a message within a message"


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ("a.png", "expected a list of pictures, found the string 'a.png'. Put the path into a list."),
        (Image.new("L", (28, 28)), "expected a list or an array of pictures, found one Image. Put it into a list."),
        (
            BLANK,
            "expected pictures (N, H, W) or (N, H, W, 3), found (28, 28). One picture? Put it into a list. Rows of",
        ),
        (np.zeros((480, 640, 3), np.uint8), "found (480, 640, 3). One picture? Put it into a list."),
        (
            torch.zeros(3, 105, 105),
            "expected pictures (N, C, H, W), found (3, 105, 105). One picture? Put it into a list.",
        ),
        (
            np.array([["a.png"], ["b.png"]], dtype=object),
            "found (2, 1). One picture? Put it into a list. Rows of pixels?",
        ),
        ([BLANK, BLANK[:0]], "images[1] is no picture: expected the shape (H, W) or (H, W, 3), found (0, 28)."),
        (np.zeros((1, 5, 5, 4), np.uint8), "expected the shape (H, W) or (H, W, 3), found (5, 5, 4)."),
        (torch.zeros(1, 2, 9, 9), "expected the shape (C, H, W) with C = 1 or 3, found (2, 9, 9)."),
        ([None], "images[0] is no picture: expected the shape (H, W) or (H, W, 3), found ()."),
        (BLANK[None].astype(int), "expected uint8 from 0 to 255 or floats from 0 to 1, found int64 from 255 to 255."),
        ([BLANK / 16], "expected uint8 from 0 to 255 or floats from 0 to 1, found float64 from 15.9375 to 15.9375."),
        ([BLANK * np.nan], "expected uint8 from 0 to 255 or floats from 0 to 1, found float64 from nan to nan."),
        ([Image.new("F", (5, 5))], "images[0] is no picture: its numbers are floats of no known range"),
        (["nowhere.png"], "the picture nowhere.png cannot be read: No such file or directory."),
        ([__file__], "test_prediction.py is not a picture that Pillow can read."),
    ],
)
def test_what_is_no_picture_is_refused(fitted, images, message):
    with pytest.raises(UserError, match=re.escape(message)):
        fitted.predict(images)


def test_prediction_before_fit_and_from_no_checkpoint_are_refused(path, tmp_path):
    with pytest.raises(UserError, match=r"nothing to predict from yet. Call fit\(X, y\) first"):
        FewShotClassifier(path).predict([BLANK])
    for checkpoint, message in (
        (tmp_path / "none.pth", r"there is no checkpoint .*none.pth"),
        (None, r"checkpoint: expected the path of a file, a name or a Checkpoint, found NoneType"),
    ):
        with pytest.raises(UserError, match=message):
            FewShotClassifier(checkpoint).fit([BLANK] * 2, "ab")


def test_a_device_that_is_not_there_or_is_none_is_refused(path):
    for device, message in (("cuda:99", "run.device is cuda:99, which PyTorch does not find"), ("gpu", "run.device")):
        with pytest.raises(UserError, match=message):
            FewShotClassifier(path, device=device).fit([BLANK, BLANK], [0, 1])


def dropping(ways, channels, image_size):
    return nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(channels * image_size**2, ways))


def test_a_prediction_drops_nothing_out(glyphs_root, drawings, tmp_path):
    register_backbone("dropping", dropping)
    settings = [
        *TINY,
        "model.name=dropping",
        "train.iterations=1",
        "train.validate_every=1",
        f"data.root={glyphs_root}",
    ]
    train(load_experiment(None, settings), tmp_path / "run")
    classifier = FewShotClassifier(tmp_path / "run" / "best.pth").fit(drawings(0)[:3], [0, 1, 2])
    torch.manual_seed(0)
    expected = classifier.predict_proba(drawings(1))
    assert np.array_equal(classifier.predict_proba(drawings(1)), expected)


def test_prototypes_answer_alone_where_no_step_is_asked_for(glyphs_root, tmp_path, drawings):
    options = ["algorithm.head=prototype", "algorithm.learn_inner_lr=true", "algorithm.inner_steps=2"]
    train(load_experiment(None, [*TINY, f"data.root={glyphs_root}", *options]), tmp_path / "run")
    some, others = drawings(0)[:3], drawings(1)
    first, alone = (
        FewShotClassifier(tmp_path / "run" / "last.pth", steps=steps).fit(some, [0, 1, 2]) for steps in (2, 0)
    )
    np.testing.assert_allclose(alone.predict_proba(others), first.predict_proba_by_step(others)[0], atol=1e-6)


@pytest.mark.parametrize("engine", ["vectorized", "loop"])
def test_probabilities_by_step_are_those_of_classifiers_with_so_many_steps(path, drawings, engine):
    checkpoint = load_checkpoint(path)
    values = with_overrides(checkpoint.experiment, {"algorithm.engine": engine}, "the test").model_dump()
    checkpoint = dataclasses.replace(checkpoint, config=values)
    classifier = FewShotClassifier(checkpoint, steps=3).fit(drawings(0)[:3], [0, 1, 2])
    found = classifier.predict_proba_by_step(drawings(1))
    assert found.shape == (4, len(drawings(1)), 3)
    for steps in (1, 2, 3):
        expected = FewShotClassifier(path, steps=steps).fit(drawings(0)[:3], [0, 1, 2]).predict_proba(drawings(1))
        np.testing.assert_allclose(found[steps], expected, atol=1e-5)
    assert not np.allclose(found[0], found[1], atol=1e-3)


def test_a_support_set_is_adapted_to_once(path, drawings, monkeypatch):
    classifier = FewShotClassifier(path).fit(drawings(0)[:3], [0, 1, 2])
    monkeypatch.setattr(VectorizedMAML, "_adapt", None)
    classifier.predict_proba(drawings(1))
