"""The benchmark on people's drawings: its pictures, what it skips and says, its table."""

import json
import sys
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from benchmarks import drawings, hand_signs
from maml_l2l.checkpoints.checkpoint import load_pretrained
from maml_l2l.config import Data, load_experiment
from maml_l2l.experiments.training import train
from maml_l2l.system.errors import UserError
from tests.test_training import TINY

NORMALISED = Data(ink="normalised")


@pytest.fixture
def model(glyphs_root, tmp_path):
    settings = [*TINY, f"data.root={glyphs_root}", "data.ink=normalised", "train.iterations=1", "task.ways=5"]
    train(load_experiment(None, settings), tmp_path / "run")
    return tmp_path / "run" / "last.pth"


def test_there_are_twelve_signs_in_eight_conditions_and_more():
    assert len(hand_signs.SIGNS) == 12 and len(hand_signs.CONDITIONS) >= 8


@pytest.mark.parametrize("condition", hand_signs.CONDITIONS)
def test_every_condition_leaves_signs_that_are_read_as_such(condition):
    """Of two drawings of each of four signs, each is most like the other of its sign, by correlation of blurred ink."""
    rng = np.random.default_rng(0)
    how = replace(hand_signs.CONDITIONS[condition], turn=4)
    signs = ("circle", "cross", "arrow", "house")
    pictures = [hand_signs.draw_sign(name, how, rng) for name in signs for _ in range(2)]
    assert all(picture.size == how.canvas for picture in pictures)
    images = drawings.labelled([(str(i), picture) for i, picture in enumerate(pictures)], NORMALISED)
    inks = [Image.fromarray(image[0].numpy()) for image in images.pixels]
    small = [np.asarray(ink.resize((9, 9), Image.Resampling.BOX)) for ink in inks]
    likeness = np.corrcoef(np.stack(small).reshape(8, -1)) - 2 * np.eye(8)
    assert likeness.argmax(1).tolist() == [1, 0, 3, 2, 5, 4, 7, 6]


def test_signs_are_drawn_alike_each_time(monkeypatch):
    monkeypatch.setattr(drawings, "PICTURES", 1)
    first, again, other = (drawings.sign_images(name, NORMALISED) for name in ("1-bit", "1-bit", "felt pen"))
    assert first.class_names == tuple(sorted(hand_signs.SIGNS))
    assert (first.pixels == again.pixels).all() and (first.pixels != other.pixels).any()


def test_the_command_prints_and_writes_what_it_measured_and_says_what_it_skipped(
    model, glyphs_root, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(drawings, "PICTURES", 3)
    monkeypatch.setattr(drawings, "QUERIES", 2)
    monkeypatch.setattr(drawings, "_FONT_FOLDERS", (str(tmp_path),))
    monkeypatch.setattr(hand_signs, "CONDITIONS", {"felt pen": hand_signs.CONDITIONS["felt pen"]})
    report, picture = tmp_path / "report.json", tmp_path / "plot.png"
    options = ["--model", str(model), "--tasks", "3", "--json", str(report), "--plot", str(picture)]
    monkeypatch.setattr(sys, "argv", ["drawings", *options, "--path", str(tmp_path / "nowhere")])
    drawings.main()
    printed, written = capsys.readouterr().out, json.loads(report.read_text())
    measured = [(row["what"], row["ways"], row["shots"]) for row in written["rows"]]
    assert measured == [("signs, mixed", 5, 1), ("signs, felt pen", 5, 1), ("digits", 5, 5)]
    assert written["ink"] == "normalised"
    for row in written["rows"]:
        assert f"{row['accuracy']:.1f} +- {row['ci95']:.1f}" in printed
        assert row["neighbour"] > 40
    assert "signs, mixed, 12-way 1-shot: the checkpoint's head has 5 outputs" in printed
    assert "fonts, 5-way 1-shot: 0 of 30 fonts are installed: apt install fonts-breip" in printed
    assert f"Omniglot, 5-way 1-shot: there is no Omniglot in {tmp_path / 'nowhere'}" in printed
    assert picture.read_bytes().startswith(b"\x89PNG")

    monkeypatch.setattr(drawings, "measure", lambda *_: pytest.fail("measured again"))
    drawings.main()
    assert printed == capsys.readouterr().out and json.loads(report.read_text()) == written
    monkeypatch.setattr(sys, "argv", [*sys.argv, "--tasks", "4"])
    with pytest.raises(UserError, match="another run: its tasks is 3, and now 4"):
        drawings.main()


def test_fonts_that_are_there_are_drawn_without_the_letters_that_they_lack(monkeypatch):
    assert len(set(drawings.CHARACTERS)) == 45
    monkeypatch.setattr(drawings, "CHARACTERS", "2Qgr")
    try:
        files = drawings.font_files()
    except UserError as error:
        pytest.skip(str(error))
    images = drawings.font_images(NORMALISED)
    assert images.class_names == ("2", "Q", "g", "r")
    assert max(images.class_sizes()) <= len(files)
    assert (images.pixels.flatten(1).amax(1) > 0).all()


def test_more_pictures_per_class_help_the_default_network():
    """Handwritten digits, 5 pictures per class against 1, and against a nearest neighbour."""
    pytest.importorskip("sklearn")
    checkpoint = load_pretrained("drawings")
    images = drawings.digit_images(checkpoint.experiment.data)
    one, five = (drawings.measure(drawings.Row("digits", 5, shots, None), images, checkpoint, 30) for shots in (1, 5))
    assert five["accuracy"] > one["accuracy"] + 4
    assert five["accuracy"] > five["neighbour"] + 4
