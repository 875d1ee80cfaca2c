"""What a program that uses the package finds as it left it, and what it sees and hears of it."""

import logging
import random
import signal
import warnings

import numpy as np
import pytest
import torch

from maml_l2l.checkpoints.checkpoint import load_checkpoint
from maml_l2l.config import load_experiment
from maml_l2l.data.sources import class_split, load_data
from maml_l2l.experiments.evaluation import evaluate
from maml_l2l.experiments.trainer import MetaTrainer
from maml_l2l.experiments.training import train
from maml_l2l.prediction import FewShotClassifier
from maml_l2l.system.messages import LOGGER, on_screen, progress_bar, progress_bars
from maml_l2l.tasks.stream import task_stream
from tests.test_training import TINY

PICTURES = list(np.random.default_rng(0).integers(0, 256, (6, 28, 28), dtype=np.uint8))


def state():
    generators = [torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()]
    return {
        "products": (torch.get_float32_matmul_precision(), torch.backends.cuda.matmul.allow_tf32),
        "threads": (torch.get_num_threads(), torch.get_num_interop_threads()),
        "dtype": torch.get_default_dtype(),
        "gradients": torch.is_grad_enabled(),
        "determinism": (torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark),
        "warnings": (list(warnings.filters), warnings.showwarning),
        "logging": [(logging.getLogger(name).level, len(logging.getLogger(name).handlers)) for name in (None, LOGGER)],
        "signals": [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)],
        "numpy": np.geterr(),
        "random": generators,
    }


@pytest.fixture(scope="module")
def experiment(glyphs_root):
    overrides = ["train.meta_batch=2", "eval.tasks=4", "eval.steps=1", "run.threads=1", f"data.root={glyphs_root}"]
    return load_experiment(None, [*TINY, *overrides])


@pytest.fixture(scope="module")
def checkpoint(experiment, tmp_path_factory):
    folder = tmp_path_factory.mktemp("state") / "run"
    train(experiment, folder)
    return folder / "best.pth"


@pytest.fixture
def unusual():
    """Settings that no default would bring back."""
    before = torch.get_float32_matmul_precision(), torch.get_num_threads(), torch.get_rng_state()
    torch.set_float32_matmul_precision("medium")
    torch.set_num_threads(2)
    torch.manual_seed(12345)
    yield
    torch.set_float32_matmul_precision(before[0])
    torch.set_num_threads(before[1])
    torch.set_rng_state(before[2])


def adapt(experiment, checkpoint, _folder):
    learner = load_checkpoint(checkpoint).learner()
    images = load_data(experiment.data)
    tasks = task_stream(experiment, images, class_split(experiment.data, images), "val", shift=1).batch(0, 2)
    learner.adapt_and_score(tasks, [1], "support")
    learner.meta_gradient(tasks, 1)


def make_trainer(experiment, _checkpoint, _folder):
    images = load_data(experiment.data)
    MetaTrainer(experiment, images, class_split(experiment.data, images), torch.device("cpu"))


def resume(experiment, _checkpoint, folder):
    train(experiment, folder)
    longer = experiment.model_copy(update={"train": experiment.train.model_copy(update={"iterations": 8})})
    train(longer, folder, resume=True)


ACTIONS = {
    "load": lambda _experiment, checkpoint, _folder: load_checkpoint(checkpoint).learner(),
    "fit": lambda _experiment, checkpoint, _folder: FewShotClassifier(checkpoint).fit(PICTURES[:2], [0, 1]),
    "predict": lambda _experiment, path, _folder: FewShotClassifier(path).fit(PICTURES[:2], [0, 1]).predict(PICTURES),
    "adapt": adapt,
    "make a trainer": make_trainer,
    "train and resume": resume,
    "evaluate": lambda experiment, path, _folder: evaluate(load_checkpoint(path), experiment, "test"),
}


@pytest.mark.usefixtures("unusual")
@pytest.mark.parametrize("action", ACTIONS)
def test_the_state_of_the_process_is_as_before(experiment, checkpoint, tmp_path, capfd, action):
    before = state()
    ACTIONS[action](experiment, checkpoint, tmp_path / "run")
    after = state()
    for name in before:
        assert after[name] == before[name], name
    assert capfd.readouterr() == ("", ""), "a library prints nothing"


def test_a_training_does_not_depend_on_the_random_state_around_it(experiment, checkpoint, tmp_path):
    torch.manual_seed(99)
    train(experiment, tmp_path / "run")
    expected, found = load_checkpoint(checkpoint), load_checkpoint(tmp_path / "run" / "best.pth")
    assert all(torch.equal(found.weights[name], weight) for name, weight in expected.weights.items())


def test_messages_reach_whoever_listens_to_the_package_s_logger(experiment, tmp_path, caplog):
    train(experiment, tmp_path / "run")
    assert {record.name.partition(".")[0] for record in caplog.records} == {LOGGER}
    assert "meta-iteration 3: validation accuracy" in caplog.text


def test_a_command_prints_messages_and_one_line_per_warning(capsys):
    before = state()
    with on_screen():
        logging.getLogger(f"{LOGGER}.data").info("read 5\nfiles \x1b[2J")
        logging.getLogger(LOGGER).warning("logged")
        warnings.warn("the cache is\nlost", stacklevel=2)
        for said in ("Image size (99 pixels) exceeds limit of 9 pixels, could be", "Corrupt EXIF data"):
            warnings.warn_explicit(said, UserWarning, "Image.py", 1, module="PIL.Image")
    assert capsys.readouterr() == ("read 5 files \\x1b[2J\n", "warning: logged\nwarning: the cache is lost\n")
    assert state() == before


def test_bars_show_only_where_they_were_asked_for(monkeypatch, capsys):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    for shown, expected in ((None, False), (False, False), (True, True)):
        if shown is None:
            list(progress_bar(range(3), "counting"))
        else:
            with progress_bars(shown):
                list(progress_bar(range(3), "counting"))
        assert ("counting: 100%" in capsys.readouterr().err) == expected
