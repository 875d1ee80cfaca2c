"""Each example runs, on few tasks, and says what it says that it does."""

import re
import runpy
import sys

import numpy as np
import pytest

from maml_l2l.backbones import registry
from tests.commands import ROOT

EXAMPLES = sorted(path.name for path in (ROOT / "examples").glob("*.py"))
TESTED = ["from_learn2learn.py", "own_loss.py", "own_network.py", "sinusoid.py"]


@pytest.fixture
def run(tmp_path, monkeypatch, glyphs_root, capsys):
    def run(name, *arguments):
        monkeypatch.chdir(tmp_path)
        (tmp_path / "data").symlink_to(glyphs_root)
        monkeypatch.setattr(sys, "argv", [name, *arguments])
        monkeypatch.setattr(registry, "_factories", dict(registry._factories))
        runpy.run_path(str(ROOT / "examples" / name), run_name="__main__")
        return capsys.readouterr().out

    return run


def numbers(text):
    return [float(number) for number in re.findall(r"\d+\.\d+", text)]


def test_every_example_is_short_and_tested():
    assert EXAMPLES == TESTED
    for name in EXAMPLES:
        assert len((ROOT / "examples" / name).read_text().splitlines()) < 60


def test_from_learn2learn_has_the_same_losses(run):
    losses = re.findall(r"loss (\S+)", run("from_learn2learn.py", "2"))
    assert len(losses) == 4
    ours, theirs = np.array(losses, float).reshape(2, 2)
    np.testing.assert_allclose(ours, theirs, atol=2e-3)  # rounding grows along the training


def test_own_loss_adapts_with_either(run):
    cross_entropy, hinge = run("own_loss.py", "8", "3").splitlines()
    assert hinge.startswith("hinge: ")
    for line in (cross_entropy, hinge):
        before, *_, after = numbers(line)
        assert after > before


def test_own_network_goes_from_training_to_prediction(run):
    sizes = ["train.iterations=2", "train.meta_batch=2", "train.validate_tasks=2", "eval.tasks=2", "eval.steps=1"]
    out = run("own_network.py", "data.alphabets=3", *sizes)
    assert re.search(r"1 inner steps: \d+\.\d ± \d+\.\d %", out)
    assert re.search(r"a cross, moved: (cross|bar)\n", out)


def test_sinusoid_fits_better_after_a_step_and_draws_its_picture(run, tmp_path):
    *_, five, ten = run("sinusoid.py", "100", "picture.png").splitlines()
    assert (five[:8], ten[:9]) == ("5 points", "10 points")
    for line in (five, ten):
        errors = numbers(line)
        assert len(errors) == 11
        assert errors[1] < errors[0]
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")
