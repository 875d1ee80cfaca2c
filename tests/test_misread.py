"""The benchmark of misread images: its counts against learn2learn's loop, its summary by hand, its output."""

import dataclasses
import json
import sys

import pytest
import torch

from benchmarks import misread
from maml_l2l.checkpoints.checkpoint import load_checkpoint
from maml_l2l.config import load_experiment
from maml_l2l.experiments.training import train
from maml_l2l.system.errors import UserError
from maml_l2l.tasks.stream import TaskStream
from tests.images import identities, numbered_images
from tests.test_training import TINY

WAYS, SHOTS, QUERIES, TASKS = 3, 2, 3, 60


@pytest.fixture(scope="module")
def model(glyphs_root, tmp_path_factory):
    sizes = [f"task.ways={WAYS}", f"task.shots={SHOTS}", f"task.queries={QUERIES}"]
    run = tmp_path_factory.mktemp("runs") / "run"
    train(load_experiment(None, [*TINY, *sizes, f"data.root={glyphs_root}", "train.iterations=1"]), run)
    return run / "last.pth"


def test_the_counts_are_those_of_learn2learns_loop_on_tasks_recognised_by_their_pixels(model):
    images = numbered_images(classes=8, images_a_class=7)
    validation = list(images.class_names[2:])
    checkpoint = dataclasses.replace(load_checkpoint(model), split={"train": [], "val": validation, "test": []})
    counts = misread.count_misread(checkpoint, images, "val", TASKS)

    algorithm = checkpoint.experiment.algorithm.model_copy(update={"engine": "loop"})
    sizes = {"ways": WAYS, "shots": SHOTS, "queries": QUERIES}
    tasks = TaskStream(images, validation, split="val", rotate=True, seed=0, **sizes).batch(0, TASKS)
    with torch.no_grad():
        logits = checkpoint.learner(algorithm).adapt_and_score(tasks, [algorithm.inner_steps])[0]
    wrong = logits.argmax(-1) != tasks.query_labels
    expected = torch.zeros_like(counts)
    for (of_class, image, _turns), misread_here in zip(
        identities(tasks.query).flatten(0, 1).tolist(), wrong.flatten().tolist(), strict=True
    ):
        expected[0, 7 * of_class + image] += 1
        expected[1, 7 * of_class + image] += misread_here
    assert counts.tolist() == expected.tolist()
    assert 0 < expected[1].sum() < expected[0].sum() == TASKS * WAYS * QUERIES


def test_the_summary_lists_the_worst_first_and_counts_the_errors_of_the_worst_hundredth():
    images = numbered_images(classes=30, images_a_class=4)
    counts = torch.zeros(2, 120, dtype=torch.int64)
    counts[0, 1:] = 10  # one image was no query: 119 were, two of which are a hundredth, rounded up
    counts[:, 7] = torch.tensor([4, 4])
    counts[1, [1, 6, 4]] = torch.tensor([5, 4, 1])
    found = misread.summary(counts, images)
    assert found["misread"] == [
        {"class": "class001", "number": 4, "queried": 4, "misread": 4},
        {"class": "class000", "number": 2, "queried": 10, "misread": 5},
        {"class": "class001", "number": 3, "queried": 10, "misread": 4},
        {"class": "class001", "number": 1, "queried": 10, "misread": 1},
    ]
    assert (found["images"], found["queries"], found["errors"]) == (119, 1184, 14)
    assert (found["worst_images"], found["worst_errors"]) == (2, 9)
    assert found["accuracy"] == pytest.approx(100 * 1170 / 1184)


def test_the_command_prints_writes_and_draws(model, tmp_path, monkeypatch, capsys):
    report, picture = tmp_path / "report.json", tmp_path / "picture.png"
    options = ["--model", str(model), "--tasks", "10", "--json", str(report), "--plot", str(picture)]
    monkeypatch.setattr(sys, "argv", ["misread", *options])
    misread.main()
    found, printed = json.loads(report.read_text()), capsys.readouterr().out
    assert (found["split"], found["tasks"], found["queries"]) == ("val", 10, 10 * WAYS * QUERIES)
    assert f"make {found['worst_errors']} of the {found['errors']} errors" in printed
    assert found["misread"][0]["class"] in printed
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_a_number_of_tasks_below_one_is_refused(model, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["misread", "--model", str(model), "--tasks", "0"])
    with pytest.raises(UserError, match=r"eval\.tasks.*0"):
        misread.main()
