"""Calibration: the error by its definition, the temperature against the one that was hidden, and its way to answers."""

import dataclasses

import numpy as np
import pytest
import torch

from maml_l2l.algorithms.calibration import calibration_error, fitted_temperature
from maml_l2l.checkpoints.checkpoint import load_checkpoint, save_checkpoint
from maml_l2l.config import load_experiment, with_overrides
from maml_l2l.data.glyphs import load_glyphs
from maml_l2l.experiments.calibration import calibrated
from maml_l2l.experiments.training import train
from maml_l2l.prediction import FewShotClassifier
from maml_l2l.system.errors import UserError
from tests.commands import assert_user_error, run
from tests.test_training import TINY


@pytest.fixture(scope="module")
def path(glyphs_root, tmp_path_factory):
    folder = tmp_path_factory.mktemp("calibration") / "run"
    train(load_experiment(None, [*TINY, "algorithm.head=prototype", f"data.root={glyphs_root}"]), folder)
    return folder / "best.pth"


def test_the_error_is_the_mean_gap_of_the_bins():
    """Four answers of 0.9, three right, and one of 0.6, wrong: (4 * |0.75 - 0.9| + 1 * |0 - 0.6|) / 5."""
    probabilities = torch.tensor([[0.9, 0.1]] * 4 + [[0.6, 0.4]])
    labels = torch.tensor([0, 0, 0, 1, 1])
    assert calibration_error(probabilities, labels) == pytest.approx((4 * 0.15 + 0.6) / 5)
    assert calibration_error(torch.eye(2), torch.tensor([0, 1])) == 0


def test_the_temperature_that_was_hidden_is_found_and_takes_the_error_away():
    generator = torch.Generator().manual_seed(0)
    true = torch.randn(20_000, 4, generator=generator) * 2
    labels = torch.distributions.Categorical(logits=true).probs.multinomial(1, generator=generator)[:, 0]
    for hidden in (0.2, 3.0):
        logits = hidden * true
        found = fitted_temperature([(logits, labels)])
        assert found == pytest.approx(hidden, rel=0.05)
        assert calibration_error((logits / found).softmax(1), labels) < 0.01
        assert calibration_error(logits.softmax(1), labels) > 0.05


def test_the_command_writes_a_checkpoint_whose_predictions_have_the_temperature(path, tmp_path, glyphs_root):
    done = run(
        "maml_l2l.calibrate", "--model", path, "--save_to", tmp_path / "c.pth", "--tasks", "4", "--path", glyphs_root
    )
    assert done.returncode == 0, done.stderr
    before, after = load_checkpoint(path), load_checkpoint(tmp_path / "c.pth")
    assert before.temperature == 1.0 != after.temperature
    assert f"temperature {after.temperature:.3f}" in done.stdout
    assert [line.split()[0] for line in done.stdout.splitlines()[2:]] == ["2", "5"]  # the classes that validate: 6
    drawings = list(255 - load_glyphs(glyphs_root, alphabets=3).pixels[::20, 0].numpy())
    plain, tempered = (FewShotClassifier(found).fit(drawings[:3], [0, 1, 2]) for found in (before, after))
    logits = np.log(plain.predict_proba(drawings[:6]).astype(float)) / after.temperature
    expected = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    np.testing.assert_allclose(tempered.predict_proba(drawings[:6]), expected, rtol=1e-3, atol=1e-6)
    assert (tempered.predict(drawings) == plain.predict(drawings)).all()


def test_the_error_before_is_that_with_the_temperature_it_had(path, glyphs_root):
    checkpoint = load_checkpoint(path)
    once, first = calibrated(checkpoint, checkpoint.experiment, tasks=4, ways=[3])
    twice, second = calibrated(once, checkpoint.experiment, tasks=4, ways=[3])
    assert twice.temperature == pytest.approx(once.temperature) != 1
    assert second[0].before == pytest.approx(first[0].after) != pytest.approx(first[0].before)


def test_what_cannot_be_calibrated_is_refused(path, tmp_path):
    done = run("maml_l2l.calibrate", "--model", path, "--save_to", path, "--tasks", "4")
    assert_user_error(done, "it is read, and would be lost. Name another file.")
    with pytest.raises(UserError, match="`temperature` should be more than 0, found 0"):
        save_checkpoint(dataclasses.replace(load_checkpoint(path), temperature=0.0), tmp_path / "x.pth")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["algorithm.head=learned"], "trained with `algorithm.head` 'prototype', which an evaluation cannot change"),
        (["algorithm.inner_steps=3"], "trained with `algorithm.inner_steps` 1, which an evaluation cannot change"),
    ],
)
def test_only_what_an_evaluation_may_change_can_be_set(path, settings, message):
    checkpoint = load_checkpoint(path)
    with pytest.raises(UserError, match=message):
        calibrated(checkpoint, with_overrides(checkpoint.experiment, {}, "the test", settings), tasks=2)
