"""The checkpoints in `pretrained/` are what their cards say, and every figure of the table is of a recorded run."""

import dataclasses
import json
import math
import shutil

import pytest

from benchmarks import omniglot, omniglot_report
from maml_l2l.checkpoints.checkpoint import load_checkpoint, save_checkpoint
from maml_l2l.config import load_experiment, parse_experiment, with_overrides
from maml_l2l.experiments.evaluation import evaluate_checkpoint
from maml_l2l.experiments.training import train
from maml_l2l.system.errors import UserError
from tests.test_training import TINY

RUNS = omniglot_report.load_results()
PRETRAINED = omniglot_report.published_checkpoints(RUNS)
TASKS = {"batch": 200, "support": 60}


@pytest.mark.parametrize("path", PRETRAINED, ids=lambda path: path.stem)
def test_a_published_checkpoint_is_slim_and_names_no_folder_of_ours(path):
    checkpoint = load_checkpoint(path)
    assert path.stat().st_size < 1e6
    assert checkpoint.optimizer is None
    assert (checkpoint.experiment.data.root, checkpoint.experiment.data.source) == ("data", None)
    assert (checkpoint.experiment.run.threads, checkpoint.experiment.run.compile) == (None, "auto")
    assert checkpoint.experiment.algorithm.engine == "vectorized"  # the loop suits our CPUs, and no GPU
    assert checkpoint.experiment.algorithm.order == "second"
    assert {name: len(classes) for name, classes in checkpoint.split.items()} == {
        "train": 1100,
        "val": 100,
        "test": 423,
    }


@pytest.mark.parametrize("path", PRETRAINED, ids=lambda path: path.stem)
@pytest.mark.parametrize("normalisation", ["batch", "support"])
def test_a_published_checkpoint_reaches_its_stated_accuracy(path, normalisation, omniglot_root):
    checkpoint = load_checkpoint(path)
    steps = checkpoint.experiment.algorithm.inner_steps
    stated = PRETRAINED[path]["evaluations"][normalisation]
    overrides = {"data.root": str(omniglot_root), "eval.tasks": TASKS[normalisation], "eval.steps": steps}
    overrides |= {"algorithm.engine": "loop"}  # the faster one for evaluating large tasks and max-pooling on CPUs
    experiment = with_overrides(
        checkpoint.experiment, overrides | {"algorithm.normalisation": normalisation}, origin="the test"
    )
    found = evaluate_checkpoint(checkpoint, experiment, "test").mean()[steps]
    accuracy = stated["accuracy"][str(steps)]
    deviation = accuracy["ci95"] / 1.96 * math.sqrt(stated["tasks"])  # of one task
    assert abs(found - accuracy["mean"]) < 4 * deviation * math.sqrt(1 / TASKS[normalisation] - 1 / stated["tasks"])


def test_results_and_model_cards_hold_the_recorded_figures():
    for path, text in omniglot_report.documents().items():
        assert path.read_text() == text, f"{path.name} is outdated: python -m benchmarks.omniglot report"


@pytest.mark.parametrize("run", RUNS, ids=lambda run: f"{run['cell']}-{run['order']}-{run['seed']}")
def test_the_header_of_a_config_states_its_recorded_accuracy(run):
    config = (omniglot_report.ROOT / "configs" / f"omniglot_{run['cell']}.yaml").read_text()
    assert omniglot_report.figure(run) in config[: config.index("\ndata:")]


@pytest.mark.parametrize("run", PRETRAINED.values(), ids=lambda run: run["cell"])
def test_the_readme_states_the_accuracy_and_training_of_a_published_checkpoint(run):
    row = f"| {omniglot_report.figure(run)} | {omniglot_report.trained(run)} | [omniglot_{run['cell']}.pth]"
    assert row in (omniglot_report.ROOT / "README.md").read_text()


@pytest.fixture
def recorded(tmp_path, monkeypatch):
    """An empty folder in place of the recorded runs, and one in place of the published checkpoints."""
    monkeypatch.setattr(omniglot_report, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(omniglot_report, "PRETRAINED", tmp_path / "pretrained")
    return tmp_path


def test_a_finished_run_is_recorded_published_and_reported(glyphs_root, recorded):
    tiny = [*TINY, "task.ways=5", "eval.tasks=6", "eval.steps=2", "algorithm.learn_inner_lr=true"]
    experiment = load_experiment(None, [*tiny, f"data.root={glyphs_root}"])
    train(experiment, recorded / "run")
    omniglot.record(recorded / "run", publish=True)
    (run,) = omniglot_report.load_results()
    command = omniglot_report.training_command(run)
    assert command.startswith("python -m maml_l2l.train --config configs/omniglot_5w1s.yaml --run_dir ")
    assert " --run_dir runs/5w1s_second_seed0 --set data.name=glyphs " in command
    again = load_experiment(omniglot_report.ROOT / "configs/omniglot_5w1s.yaml", command.split(" --set ")[1].split())
    local = {"data.root": str(glyphs_root), "run.device": "cpu", "train.checkpoint_every": 4}
    assert with_overrides(again, local, "the test") == experiment
    best = load_checkpoint(recorded / "run" / "best.pth")
    expected = evaluate_checkpoint(best, experiment, "test")
    found = [run["evaluations"]["batch"]["accuracy"][str(step)]["mean"] for step in range(3)]
    assert found == pytest.approx(expected.mean())
    assert list(omniglot_report.published_checkpoints([run])) == [recorded / "pretrained" / "omniglot_5w1s.pth"]
    assert f"{expected.mean()[1]:.2f} +- {expected.ci95()[1]:.2f}" in omniglot_report.results_markdown([run], [])
    assert f"{expected.mean()[2]:.2f} +- {expected.ci95()[2]:.2f}" in omniglot_report.model_card(run)
    omniglot_report.plot([run], json.loads(omniglot_report.PUBLISHED.read_text()), recorded / "x.png")
    with pytest.raises(UserError, match=r"5w1s_second_seed0.json holds the figures of such a run already, and test"):
        omniglot.record(recorded / "run", publish=False)


def test_a_run_that_starts_from_another_is_recorded_beside_one_that_does_not(glyphs_root, recorded):
    tiny = [*TINY, "task.ways=5", "eval.tasks=2", "eval.steps=1", f"data.root={glyphs_root}"]
    train(load_experiment(None, tiny), recorded / "run")
    train(load_experiment(None, [*tiny, f"model.pretrained={recorded / 'run' / 'best.pth'}"]), recorded / "second")
    shutil.copy(recorded / "run" / "best.pth", recorded / "omniglot_5w1s.pth")
    train(load_experiment(None, [*tiny, f"model.pretrained={recorded / 'omniglot_5w1s.pth'}"]), recorded / "third")
    for name in ("run", "second", "third"):
        omniglot.record(recorded / name, publish=False)
    starts = ("", "_from_omniglot_5w1s", "_from_run")
    names = [f"5w1s_second_seed0{start}.json" for start in starts]
    assert sorted(path.name for path in (recorded / "results").iterdir()) == names
    text = omniglot_report.results_markdown(omniglot_report.load_results(), [])
    assert all(f"| 5w1s, second order, seed 0{start} " in text for start in ("", ", from run", ", from 5w1s"))


@pytest.mark.parametrize("run", RUNS, ids=lambda run: f"{run['cell']}-{run['order']}-{run['seed']}")
def test_the_stated_command_has_the_config_of_the_recorded_run(run):
    _, _, options = omniglot_report.training_command(run).partition(" --config ")
    config, _, options = options.partition(" --run_dir ")
    name, _, settings = options.partition(" --set ")
    assert (omniglot_report.RESULTS / f"{name.removeprefix('runs/')}.json").exists()
    stated = load_experiment(omniglot_report.ROOT / config, settings.split())
    found = parse_experiment(run["config"], "the run")
    local = {key: getattr(getattr(found, key.split(".")[0]), key.split(".")[1]) for key in omniglot_report.LOCAL}
    assert with_overrides(stated, local, "the test") == found


def test_the_stated_command_starts_as_many_processes_as_the_run_had():
    session = RUNS[0]["sessions"][-1]
    command = omniglot_report.training_command(RUNS[0] | {"sessions": [session | {"processes": 2}]})
    one = omniglot_report.training_command(RUNS[0] | {"sessions": [session | {"processes": 1}]})
    assert command == one.replace("python -m", "torchrun --nproc_per_node=2 -m", 1) != one


def test_an_unfinished_run_is_not_recorded(glyphs_root, recorded):
    train(load_experiment(None, [*TINY, f"data.root={glyphs_root}"]), recorded / "run")
    last = load_checkpoint(recorded / "run" / "last.pth")
    save_checkpoint(dataclasses.replace(last, iteration=5), recorded / "run" / "last.pth")
    with pytest.raises(UserError, match=r"run has done 5 of 6 meta-iterations. Finish it first: .* --resume"):
        omniglot.record(recorded / "run", publish=False)
