"""Every figure of RESULTS.md, the configs and the cards is of a recorded run, and its command trains that network."""

import csv
import dataclasses
import json
import re
import shutil

import pytest
import torch

from benchmarks import model_cards, omniglot, omniglot_protocols, omniglot_report, omniglot_runs
from maml_l2l.checkpoints.checkpoint import load_checkpoint, save_checkpoint
from maml_l2l.config import PROTOCOLS, load_experiment, parse_experiment, with_overrides
from maml_l2l.data.sources import class_split, load_data
from maml_l2l.experiments.evaluation import evaluate
from maml_l2l.experiments.trainer import MetaTrainer
from maml_l2l.experiments.training import train
from maml_l2l.system.errors import UserError
from tests.test_training import TINY

ROOT, RUNS = omniglot_runs.ROOT, omniglot_runs.load_runs()
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))


def test_results_and_cards_hold_the_recorded_figures():
    for path, text in omniglot_report.documents().items():
        assert path.read_text(encoding="utf-8") == text, f"{path.name}: python -m benchmarks.omniglot report"


def test_the_page_of_results_is_short_and_has_the_best_run_of_each_cell_and_order():
    text = (ROOT / "RESULTS.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 80
    for cell, name in omniglot_runs.CELLS.items():
        for order in ("second", "first"):
            runs = [run for run in RUNS if (run["cell"], run["order"]) == (cell, order)]
            best = max(runs, key=lambda run: run["val_accuracy"])
            batch, support = (
                found["accuracy"][str(best["config"]["algorithm"]["inner_steps"])]
                for found in (best["evaluations"]["batch"], best["evaluations"]["support"])
            )
            figures = " | ".join(f"{found['mean']:.2f} ± {found['ci95']:.2f}" for found in (batch, support))
            row = rf"\| {name} +\| {order} order +\| {re.escape(figures)} \|"
            assert re.search(row, text), (cell, order)


def test_the_csv_has_a_row_per_run_and_cell_and_its_file():
    with open(ROOT / "RESULTS.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len({(row["run"], row["ways"], row["shots"], row["protocol"]) for row in rows}) == len(rows) == len(RUNS)
    assert {row["run"] for row in rows} == {path.stem for path in omniglot_runs.run_files()}
    for row in rows:
        recorded = json.loads((omniglot_runs.RESULTS / f"{row['run']}.json").read_text())
        cell = f"{row['ways']}w{row['shots']}s"
        measured = recorded if recorded["cell"] == cell else recorded["also"][cell]
        stated = measured["evaluations"]["batch"]["accuracy"][row["inner_steps"]]["mean"]
        assert abs(float(row["transductive_mean"]) - stated) < 1e-3


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_the_header_of_a_config_is_short_and_says_how_to_launch_it(path):
    header = re.match(r"(#.*\n)*", path.read_text(encoding="utf-8"))[0].splitlines()
    assert len(header) <= 5
    launch = next(line for line in header if "# Launch: " in line)
    assert f"python -m maml_l2l.train --config configs/{path.name}" in launch
    load_experiment(path, re.findall(r"[a-z_]+\.[a-z_]+=\S+", launch.replace(")", " ")))


OF_RESULTS = [path for path in CONFIGS if path.stem.startswith("omniglot")]


@pytest.mark.parametrize("path", OF_RESULTS, ids=lambda path: path.stem)
def test_the_header_of_a_config_states_what_its_own_run_reached(path):
    header = path.read_text(encoding="utf-8").partition("\ndata:")[0]
    as_it_is = re.compile(rf"{path.name} --run_dir \S+( --set( run\.\S+)+)?$")
    plain = [run for run in RUNS if as_it_is.search(omniglot_runs.training_command(run))]
    stated = [run for run in plain if f"Expect: {omniglot_runs.figure(run)} % on 1,000 test tasks" in header]
    assert len(stated) == 1
    assert omniglot_runs.duration(stated[0]["seconds"]) in header
    seed = re.search(r"run\.seed=(\d)", header)
    assert int(seed[1] if seed else 0) == stated[0]["seed"]


@pytest.fixture
def recorded(tmp_path, monkeypatch):
    """An empty folder in place of the recorded runs, and one in place of the published checkpoints."""
    monkeypatch.setattr(omniglot_runs, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(omniglot_runs, "PRETRAINED", tmp_path / "pretrained")
    return tmp_path


def test_a_finished_run_is_recorded_published_and_reported(glyphs_root, recorded):
    tiny = [*TINY, "task.ways=5", "eval.tasks=6", "eval.steps=2", "algorithm.learn_inner_lr=true"]
    experiment = load_experiment(None, [*tiny, f"data.root={glyphs_root}"])
    train(experiment, recorded / "run")
    omniglot.record(recorded / "run", publish="tiny", also=["5w5s"])
    run, other = runs = omniglot_runs.load_runs()
    command = run["command"]
    assert command.startswith("python -m maml_l2l.train --config configs/omniglot_5w1s.yaml --run_dir ")
    assert " --run_dir runs/5w1s_second_seed0 --set data.name=glyphs " in command
    again = load_experiment(ROOT / "configs/omniglot_5w1s.yaml", command.split(" --set ")[1].split())
    local = {"data.root": str(glyphs_root), "run.device": "cpu", "train.checkpoint_every": 4}
    assert with_overrides(again, local, "the test") == experiment

    best = load_checkpoint(recorded / "run" / "best.pth")
    expected = evaluate(best, experiment, "test")
    found = [run["evaluations"]["batch"]["accuracy"][str(step)]["mean"] for step in range(3)]
    assert found == pytest.approx(expected.mean())
    larger = with_overrides(experiment, {"task.shots": 5, "task.queries": 5}, "the test")
    larger_expected = evaluate(best, larger, "test")
    assert other["evaluations"]["batch"]["accuracy"]["1"]["mean"] == pytest.approx(larger_expected.mean()[1])

    validated = with_overrides(larger, {"eval.tasks": larger.train.validate_tasks}, "the test")
    assert other["val_accuracy"] == pytest.approx(evaluate(best, validated, "val").mean()[1])

    path = recorded / "pretrained" / "tiny.pth"
    assert omniglot_runs.published_networks(runs) == {path: [run, other]}
    texts = model_cards.documents(runs)
    assert json.loads(texts[path.parent / "names.json"]) == {"omniglot_5w1s": "tiny.pth", "omniglot_5w5s": "tiny.pth"}
    stated = {step: f"{expected.mean()[step]:.2f} ± {expected.ci95()[step]:.2f}" for step in (1, 2)}
    assert stated[1] in omniglot_report.results_page(runs, []) and stated[1] in texts[path.with_suffix(".md")]
    assert f"{stated[2]} (2 steps)" in texts[path.with_suffix(".md")]
    assert "also serve 5-way 5-shot tasks" in texts[path.with_suffix(".md")]
    assert [row.split(",")[:3] for row in omniglot_report.results_csv(runs).splitlines()[1:]] == [
        ["5w1s_second_seed0", "5", "1"],
        ["5w1s_second_seed0", "5", "5"],
    ]
    omniglot_report.plot(runs, json.loads(omniglot_report.PUBLISHED.read_text()), recorded / "x.png")
    with pytest.raises(UserError, match=r"5w1s_second_seed0.json holds the figures of such a run already, and test"):
        omniglot.record(recorded / "run")


def test_published_networks_are_measured_under_each_protocol_once(glyphs_root, recorded, monkeypatch, capsys):
    """One for 5 ways, which `lake` cannot use, and one for 20; tasks of each protocol made few."""
    for protocol in PROTOCOLS.values():
        monkeypatch.setitem(protocol.settings, "eval.tasks", 3)
    pretrained = omniglot_runs.PRETRAINED
    pretrained.mkdir()
    for ways in (5, 20):
        settings = [f"data.root={glyphs_root}", "data.split=alphabets", f"task.ways={ways}"]
        experiment = load_experiment(None, [*TINY, *settings])
        images = load_data(experiment.data)
        trainer = MetaTrainer(experiment, images, class_split(experiment.data, images), torch.device("cpu"))
        save_checkpoint(trainer.validated(), pretrained / f"net{ways}.pth")
    names = {f"omniglot_{cell}": f"net{cell.partition('w')[0]}.pth" for cell in omniglot_runs.CELLS}
    (pretrained / "names.json").write_text(json.dumps(names))
    chosen = {"protocols": ["mamlpp", "lake"], "cells": ["5w1s", "20w1s"]}
    omniglot_protocols.measure(**chosen)
    found = omniglot_protocols.load()
    assert {key.rpartition("/")[0] for key in found} == {
        *("net5/mamlpp/5w1s", "net20/mamlpp/5w1s", "net20/mamlpp/20w1s", "net20/lake/20w1s")
    }
    sizes = {"task.ways": 5, "task.queries": 1, "data.rotate": False, "eval.tasks": 3, "eval.steps": 1}
    expected = evaluate(pretrained / "net20.pth", with_overrides(experiment, sizes, "the test"))
    stated = found["net20/mamlpp/5w1s/batch"]
    assert stated["accuracy"]["1"]["mean"] == pytest.approx(expected.mean()[1])
    assert (stated["protocol"], stated["ways"], stated["queries"], stated["tasks"]) == ("mamlpp", 5, 1, 3)
    assert found["net20/lake/20w1s/support"]["normalisation"] == "support"

    page = omniglot_report.results_page([], [])
    both = [found[f"net20/lake/20w1s/{kind}"]["accuracy"]["1"] for kind in ("batch", "support")]
    figures = " / ".join(f"{one['mean']:.2f} ± {one['ci95']:.2f}" for one in both)
    assert re.search(rf"\| `lake` +\| +\| +\| {figures} +\| +\|", page)
    assert found["net20/lake/20w1s/batch"]["seen_classes"] == 0 and "Of its characters 0 of 33 trained" in page

    capsys.readouterr()
    omniglot_protocols.measure(**chosen)
    assert capsys.readouterr().out == ""  # all of it is known
    (pretrained / "net5.pth").write_bytes((pretrained / "net20.pth").read_bytes())
    omniglot_protocols.measure(**chosen)  # another network by that name
    assert {line.split(": ")[1] for line in capsys.readouterr().out.splitlines()} == {
        f"net5/{what}/{kind}" for what in ("mamlpp/5w1s", "mamlpp/20w1s", "lake/20w1s") for kind in ("batch", "support")
    }
    with pytest.raises(UserError, match=r"there is no pretrained network net6. Name some of net20, net5."):
        omniglot_protocols.measure(["net6"])


def test_a_run_that_starts_from_another_is_recorded_beside_one_that_does_not(glyphs_root, recorded):
    tiny = [*TINY, "task.ways=5", "eval.tasks=2", "eval.steps=1", f"data.root={glyphs_root}"]
    first = recorded / "runs" / "5w1s_second_seed0"
    train(load_experiment(None, tiny), first)
    train(load_experiment(None, [*tiny, f"model.pretrained={first / 'best.pth'}"]), recorded / "second")
    shutil.copy(first / "best.pth", recorded / "mine.pth")
    train(load_experiment(None, [*tiny, f"model.pretrained={recorded / 'mine.pth'}"]), recorded / "third")
    for folder in (first, recorded / "second", recorded / "third"):
        omniglot.record(folder)
    starts = ("", "_from_5w1s_second_seed0", "_from_mine")
    names = [f"5w1s_second_seed0{start}" for start in starts]
    assert sorted(path.stem for path in omniglot_runs.run_files()) == names
    runs = {omniglot_runs.run_name(run): run for run in omniglot_runs.load_runs()}
    found = [omniglot_runs.start_run(runs[name], list(runs.values())) for name in names]
    assert found == [None, runs[names[0]], None]  # nothing recorded has the file of the third
    assert omniglot_runs.seconds_before(runs[names[1]], list(runs.values())) == runs[names[0]]["seconds"]


def test_an_inductive_training_is_compared_with_its_like_alone(glyphs_root, recorded):
    tiny = [*TINY, "task.ways=5", "eval.tasks=6", "eval.steps=1", f"data.root={glyphs_root}"]
    for name, settings in (("usual", []), ("other", ["algorithm.normalisation=support"])):
        train(load_experiment(None, [*tiny, *settings]), recorded / name)
        omniglot.record(recorded / name, publish=name)
    runs = omniglot_runs.load_runs()
    assert [omniglot_runs.run_name(run) for run in runs] == ["5w1s_second_seed0", "5w1s_second_seed0_inductive"]
    for run, inductive in zip(runs, (False, True), strict=True):
        assert omniglot_runs.best(runs, "5w1s", "second", inductive) is run
    table = omniglot_report.results_page(runs, []).partition("## Our best run")[2].partition("## What others")[0]
    rows = [line for line in table.splitlines() if line.startswith("| 5-way 1-shot")]
    assert [("trained inductively" in row) for row in rows] == [False, True]
    names = {"omniglot_5w1s": "usual.pth", "omniglot_5w1s_inductive": "other.pth"}
    assert json.loads(model_cards.documents(runs)[recorded / "pretrained" / "names.json"]) == names
    assert [line.split(",")[16] for line in omniglot_report.results_csv(runs).splitlines()] == [
        *("trained_with", "batch", "support")
    ]


def test_a_run_that_was_extended_after_its_best_validation_is_recorded(glyphs_root, recorded):
    tiny = [*TINY, "task.ways=5", "eval.tasks=2", "eval.steps=1", f"data.root={glyphs_root}"]
    train(load_experiment(None, tiny), recorded / "extended")
    best = (recorded / "extended" / "best.pth").read_bytes()
    longer = [*tiny, "train.iterations=7", "train.validate_every=100"]
    train(load_experiment(None, longer), recorded / "extended", resume=True)
    (recorded / "extended" / "best.pth").write_bytes(best)
    omniglot.record(recorded / "extended")
    (run,) = omniglot_runs.load_runs()
    assert (run["config"]["train"]["iterations"], run["iteration"] <= 6) == (7, True)


@pytest.mark.parametrize("run", RUNS, ids=lambda run: omniglot_runs.run_name(run))
def test_the_stated_command_has_the_config_of_the_recorded_run(run):
    _, _, options = run["command"].partition(" --config ")
    config, _, options = options.partition(" --run_dir ")
    name, _, settings = options.partition(" --set ")
    assert (omniglot_runs.RESULTS / f"{name.removeprefix('runs/')}.json").exists()
    stated = load_experiment(ROOT / config, settings.split())
    found = parse_experiment(run["config"], "the run")
    local = {key: getattr(getattr(found, key.split(".")[0]), key.split(".")[1]) for key in omniglot_runs.LOCAL}
    assert with_overrides(stated, local, "the test") == found


@pytest.mark.parametrize("run", RUNS, ids=lambda run: omniglot_runs.run_name(run))
def test_what_a_run_started_from_is_recorded_too(run):
    assert (omniglot_runs.start(run) is None) == (omniglot_runs.start_run(run, RUNS) is None)


def test_the_stated_command_starts_as_many_processes_as_the_run_had():
    session = RUNS[0]["sessions"][-1]
    command = omniglot_runs.training_command(RUNS[0] | {"sessions": [session | {"processes": 2}]})
    one = omniglot_runs.training_command(RUNS[0] | {"sessions": [session | {"processes": 1}]})
    assert command == one.replace("python -m", "torchrun --nproc_per_node=2 -m", 1) != one


def test_an_unfinished_run_is_not_recorded(glyphs_root, recorded):
    train(load_experiment(None, [*TINY, f"data.root={glyphs_root}"]), recorded / "run")
    last = load_checkpoint(recorded / "run" / "last.pth")
    save_checkpoint(dataclasses.replace(last, iteration=5), recorded / "run" / "last.pth")
    with pytest.raises(UserError, match=r"run has done 5 of 6 meta-iterations. Finish it first: .* --resume"):
        omniglot.record(recorded / "run")
