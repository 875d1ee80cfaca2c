"""The benchmark on handwritten digits: its pixels, its baseline against scikit-learn's, and its table."""

import json
import sys

import numpy as np
import pytest
from PIL import Image

from benchmarks import digits
from maml_l2l.config import Data, load_experiment
from maml_l2l.experiments.training import train
from maml_l2l.system.errors import UserError
from maml_l2l.tasks.stream import TaskStream
from tests.test_training import TINY

datasets = pytest.importorskip("sklearn.datasets")
neighbors = pytest.importorskip("sklearn.neighbors")


@pytest.fixture(scope="module")
def images():
    return digits.load_digits(Data())


def test_the_digits_are_omniglot_sized_and_still_the_same_digits(images):
    found = datasets.load_digits()
    assert images.pixels.shape == (1797, 1, 28, 28)
    assert images.pixels.unique().tolist() == [0, 255]
    assert images.class_sizes() == np.bincount(found.target).tolist()
    for picture, digit in zip(
        images.pixels[::100, 0], found.images[found.target.argsort(kind="stable")][::100], strict=True
    ):
        shrunk = np.asarray(Image.fromarray(picture.numpy()).resize((8, 8), Image.Resampling.BOX))
        assert np.corrcoef(shrunk.ravel(), digit.ravel())[0, 1] > 0.85


def test_the_nearest_neighbour_is_scikit_learn_s(images):
    stream = TaskStream(images, list(images.class_names), split="digits", rotate=False, seed=1, **digits.SIZES)
    tasks = stream.batch(0, 5)
    expected = []
    for index in range(5):
        baseline = neighbors.KNeighborsClassifier(n_neighbors=1, metric="cosine")
        baseline.fit(tasks.support[index].flatten(1), tasks.support_labels[index])
        expected.append(100 * baseline.score(tasks.query[index].flatten(1), tasks.query_labels[index]))
    assert digits.nearest_neighbour(tasks).accuracies[0].tolist() == pytest.approx(expected)


def test_the_command_prints_and_writes_both_accuracies(glyphs_root, tmp_path, monkeypatch, capsys):
    settings = [*TINY, f"data.root={glyphs_root}", "train.iterations=1"]
    train(load_experiment(None, [*settings, "task.ways=5"]), tmp_path / "run")
    report = tmp_path / "report.json"
    options = ["--model", str(tmp_path / "run" / "last.pth"), "--tasks", "3", "--json", str(report)]
    monkeypatch.setattr(sys, "argv", ["digits", *options])
    digits.main()
    printed = capsys.readouterr().out
    rows = json.loads(report.read_text())["rows"]
    assert [row["by"] for row in rows] == ["network", "cosine nearest neighbour"]
    assert rows[1]["accuracy"] > 60
    assert all(f"{row['accuracy']:.2f}" in printed and f"+- {row['ci95']:.2f}" in printed for row in rows)


def test_a_network_of_fewer_ways_and_a_missing_scikit_learn_are_refused(glyphs_root, tmp_path, monkeypatch):
    train(load_experiment(None, [*TINY, f"data.root={glyphs_root}", "train.iterations=1"]), tmp_path / "run")
    monkeypatch.setattr(sys, "argv", ["digits", "--model", str(tmp_path / "run" / "last.pth")])
    with pytest.raises(UserError, match=r"serves tasks of up to 3 classes, not of 5"):
        digits.main()
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(UserError, match=r"scikit-learn's, which is not installed: pip install scikit-learn"):
        digits.load_digits(Data())
