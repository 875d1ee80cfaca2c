"""The checkpoints in `pretrained/` are found by name, hold what their cards say and reach what these state."""

import json
import math
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import maml_l2l
from benchmarks import model_cards, omniglot_runs
from maml_l2l import pretrained
from maml_l2l.checkpoints.checkpoint import load_checkpoint
from maml_l2l.config import with_overrides
from maml_l2l.experiments.evaluation import evaluate
from maml_l2l.prediction import FewShotClassifier
from maml_l2l.pretrained import find_checkpoint
from maml_l2l.system.errors import UserError

ROOT, RUNS = omniglot_runs.ROOT, omniglot_runs.load_runs()
NETWORKS = omniglot_runs.published_networks(RUNS)
SERVED = [(path, run) for path, measured in NETWORKS.items() for run in measured]
TASKS = {"5w1s": 100, "5w5s": 30, "20w1s": 25, "20w5s": 10}


@pytest.mark.parametrize("path", NETWORKS, ids=lambda path: path.stem)
def test_a_published_checkpoint_is_slim_and_names_no_folder_of_ours(path):
    checkpoint = load_checkpoint(path)
    assert path.stat().st_size < 1e6
    assert checkpoint.optimizer is None
    assert (checkpoint.experiment.data.root, checkpoint.experiment.data.source) == ("data", None)
    assert (checkpoint.experiment.run.threads, checkpoint.experiment.run.compile) == (None, "auto")
    assert checkpoint.experiment.algorithm.engine != "loop"  # which suits our CPUs, and no GPU
    sizes = {name: len(classes) for name, classes in checkpoint.split.items()}
    assert sizes == {"train": 1100, "val": 100, "test": 423}


@pytest.mark.parametrize("path", NETWORKS, ids=lambda path: path.stem)
def test_the_first_run_of_a_published_checkpoint_is_its_training(path):
    training, checkpoint = NETWORKS[path][0], load_checkpoint(path)
    assert checkpoint.iteration == training["iteration"] > 0
    assert checkpoint.experiment.task.model_dump() == omniglot_runs.task_of(training) == training["config"]["task"]
    assert checkpoint.validation_accuracy == training["val_accuracy"]


def test_no_two_published_checkpoints_hold_one_network():
    weights = {path.stem: load_checkpoint(path).weights["convolutions.0.weight"] for path in NETWORKS}
    assert len({tuple(values.flatten().tolist()) for values in weights.values()}) == len(weights)


def _slow(run):
    """Of the cells with five shots, those that a network serves beside its own; they take longest."""
    return [pytest.mark.slow] if run["cell"] == "20w5s" else []


@pytest.mark.parametrize(
    ("path", "run"),
    [pytest.param(path, run, id=f"{path.stem}-{run['cell']}", marks=_slow(run)) for path, run in SERVED],
)
@pytest.mark.parametrize("normalisation", ["batch", "support"])
def test_a_published_checkpoint_reaches_its_stated_accuracy(path, run, normalisation, omniglot_root):
    checkpoint, stated, tasks = load_checkpoint(path), run["evaluations"][normalisation], TASKS[run["cell"]]
    steps = run["config"]["algorithm"]["inner_steps"]
    overrides = {f"task.{key}": stated[key] for key in ("ways", "shots", "queries")}
    overrides |= {"data.root": str(omniglot_root), "eval.tasks": tasks, "eval.steps": steps}
    overrides |= {"algorithm.engine": "loop"}  # the faster one for evaluating large tasks and max-pooling on CPUs
    overrides |= {"algorithm.normalisation": normalisation}
    experiment = with_overrides(checkpoint.experiment, overrides, "the test")
    found = evaluate(checkpoint, experiment, "test").mean()[steps]
    accuracy = stated["accuracy"][str(steps)]
    deviation = accuracy["ci95"] / 1.96 * math.sqrt(stated["tasks"])  # of one task
    assert abs(found - accuracy["mean"]) < 4 * deviation * math.sqrt(1 / tasks - 1 / stated["tasks"])


@pytest.mark.parametrize("cell", omniglot_runs.CELLS)
def test_the_name_of_a_task_finds_the_network_that_serves_it_best(cell):
    path = find_checkpoint(f"omniglot_{cell}")
    scores = {other: run["val_accuracy"] for other, run in SERVED if (run["cell"], run["order"]) == (cell, "second")}
    assert scores[path] == max(scores.values())
    load_checkpoint(path).check_ways(omniglot_runs.task_sizes(cell)["task.ways"])


@pytest.mark.parametrize("path", NETWORKS, ids=lambda path: path.stem)
def test_a_file_is_found_by_its_name_too(path):
    assert find_checkpoint(path.stem) == path


@pytest.mark.parametrize("given", ["runs/x/best.pth", "none.pth", "./omniglot_5w1s", ROOT / "omniglot_5w1s"])
def test_a_path_comes_back_as_it_is(given):
    assert find_checkpoint(given) == Path(given)


def test_a_file_in_the_working_folder_comes_before_a_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "omniglot_5w1s").write_text("mine")
    assert not find_checkpoint("omniglot_5w1s").is_absolute()


def test_an_unknown_name_is_refused_with_the_names_there_are(monkeypatch, tmp_path):
    with pytest.raises(UserError, match=r"no pretrained network omniglot_9w9s\. Give the path .* omniglot_5w1s, "):
        find_checkpoint("omniglot_9w9s")
    monkeypatch.setattr(pretrained, "_FOLDERS", (tmp_path,))
    with pytest.raises(UserError, match=r"one of these names: none, as this installation came without them\.$"):
        find_checkpoint("omniglot_5w1s")


def test_names_are_found_without_torch():
    code = "import sys\nfrom maml_l2l.pretrained import find_checkpoint\nfind_checkpoint('omniglot_5w1s')\n"
    done = subprocess.run([sys.executable, "-c", code + "print('torch' in sys.modules)"], capture_output=True, cwd=ROOT)
    assert done.stdout.strip() == b"False", done.stderr


def test_a_wheel_carries_the_networks_and_every_package(tmp_path):
    pytest.importorskip("setuptools")
    options = ["--no-deps", "--no-build-isolation", "-q", "-w", str(tmp_path)]
    source = tmp_path / "source"
    # a copy, as a build leaves files beside its sources
    files = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True)
    if files.returncode:
        pytest.skip("this is not a git checkout")
    for name in files.stdout.splitlines():
        if name.startswith(("maml_l2l/", "pretrained/", "examples/", "setup", "README", "pyproject", "LICENSE")):
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            if (ROOT / name).exists():
                (source / name).write_bytes((ROOT / name).read_bytes())
    subprocess.run([sys.executable, "-m", "pip", "wheel", *options, str(source)], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(tmp_path / "installed")
    code = "from maml_l2l.pretrained import pretrained_files as f\nprint(*(str(p) for p in f().values()), sep='\\n')"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path / "installed", capture_output=True, text=True)
    found = done.stdout.splitlines()
    assert len(found) == len(pretrained.pretrained_files()), done.stderr
    assert all(path.startswith(str(tmp_path / "installed" / "maml_l2l")) for path in found)
    for of_wheel, of_checkout in (("sample_drawings", "examples/drawings"), ("page/static", "maml_l2l/page/static")):
        folders = tmp_path / "installed/maml_l2l" / of_wheel, ROOT / of_checkout
        carried, expected = ({path.relative_to(folder) for path in folder.rglob("*.*")} for folder in folders)
        assert carried == expected and expected
    modules = {path.relative_to(ROOT) for path in (ROOT / "maml_l2l").rglob("*.py")}
    installed = {path.relative_to(tmp_path / "installed") for path in (tmp_path / "installed").rglob("*.py")}
    assert installed == modules


def test_a_card_starts_with_what_the_network_was_trained_on():
    for path, measured in NETWORKS.items():
        first = path.with_suffix(".md").read_text(encoding="utf-8").splitlines()[2]
        assert first.startswith(f"MAML trained on {omniglot_runs.CELLS[measured[0]['cell']]} tasks of Omniglot")
        assert all(omniglot_runs.CELLS[run["cell"]] in first for run in measured)


@pytest.mark.parametrize("path", NETWORKS, ids=lambda path: path.stem)
def test_the_python_of_a_card_names_the_drawings(path, monkeypatch, capsys):
    monkeypatch.setattr(maml_l2l, "FewShotClassifier", FewShotClassifier, raising=False)
    monkeypatch.chdir(ROOT)
    code = re.search(r"```python\n(.*?)```", path.with_suffix(".md").read_text(encoding="utf-8"), re.DOTALL)[1]
    exec(code, {})
    printed = capsys.readouterr().out.replace("\n", "").strip("[]").replace("'", "").split()
    drawn = [query.stem.rstrip("0123456789") for query in sorted((ROOT / "examples/drawings/queries").glob("*.png"))]
    assert len(printed) == len(drawn)
    assert sum(name == right for name, right in zip(printed, drawn, strict=True)) >= 0.8 * len(drawn)


def test_the_names_are_those_of_the_recorded_runs():
    assert json.loads((omniglot_runs.PRETRAINED / "names.json").read_text()) == model_cards.names(RUNS)
