"""The paper's Omniglot table from runs of our own.

    python -m benchmarks.omniglot record runs/omniglot_20w1s [--publish NAME] [--also 5w1s 5w5s 20w5s]
    python -m benchmarks.omniglot protocols [--networks NAME ...] [--protocols NAME ...] [--cells 5w1s ...]
    python -m benchmarks.omniglot report

`record` evaluates the best checkpoint of a finished run on the test classes, once, and writes what it found, with the
config, time, machine and command of the training, to `benchmarks/results/omniglot/`; `--publish` also puts the
checkpoint into `pretrained/NAME.pth`, and `--also` evaluates it on tasks of other sizes, too. `protocols` evaluates
the networks in `pretrained/` as each publication did, and goes on where it was stopped. `report` turns these
files into `RESULTS.md`, `RESULTS.csv`, their picture, and what stands beside the checkpoints in `pretrained/`.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from benchmarks import omniglot_protocols, omniglot_report, omniglot_runs
from benchmarks.omniglot_runs import CELLS, LOCAL, figure, own_cell, run_name, task_sizes, training_command
from maml_l2l import commands
from maml_l2l.checkpoints.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from maml_l2l.config import PROTOCOLS, Experiment, documented_keys, with_overrides
from maml_l2l.experiments.evaluation import evaluate
from maml_l2l.experiments.run_folder import BEST, LAST, SESSIONS
from maml_l2l.reports.tables import evaluation_json, evaluation_protocol
from maml_l2l.system.errors import UserError
from maml_l2l.system.files import write_json


def evaluations(checkpoint: Checkpoint, experiment: Experiment) -> dict:
    """Accuracy on test tasks after 0, 1, ... inner steps, under both readings of normalisation."""
    found = {}
    for normalisation in ("batch", "support"):
        read = with_overrides(experiment, {"algorithm.normalisation": normalisation}, "the benchmark")
        evaluation = evaluate(checkpoint, read, "test")
        found[normalisation] = evaluation_json(evaluation, evaluation_protocol(read, "test"))
    return found


def measured_on(checkpoint: Checkpoint, experiment: Experiment, other: str) -> dict:
    """What a checkpoint scores on validation and test tasks of the cell `other`, for which it was not trained."""
    sized = with_overrides(experiment, task_sizes(other), "--also")
    steps = sized.algorithm.inner_steps
    sizes = {"eval.tasks": sized.train.validate_tasks, "eval.steps": steps}
    validation = evaluate(checkpoint, with_overrides(sized, sizes, "--also"), "val")
    return {"val_accuracy": validation.mean()[steps], "evaluations": evaluations(checkpoint, sized)}


def record(run_dir: Path, publish: str | None = None, also: Sequence[str] = ()) -> None:
    """Evaluate the run in the folder `run_dir` and write its figures; see the module.

    Raises `UserError` where it is not finished, or where its figures were taken before.
    """
    last, best = load_checkpoint(run_dir / LAST), load_checkpoint(run_dir / BEST)
    experiment = last.experiment
    if last.iteration < experiment.train.iterations:
        raise UserError(
            f"{run_dir} has done {last.iteration} of {experiment.train.iterations} meta-iterations. "
            f"Finish it first: python -m maml_l2l.train --resume {run_dir}"
        )
    sessions = json.loads((run_dir / SESSIONS).read_text())
    read = with_overrides(best.experiment, {"data.root": experiment.data.root}, "the run")  # resumed, keys may differ
    config = experiment.model_dump()
    run = {
        "cell": own_cell(config),
        "order": experiment.algorithm.gradient,
        "seed": experiment.run.seed,
        "config": config,
        "sessions": sessions,
    }
    path = omniglot_runs.RESULTS / f"{run_name(run)}.json"
    if path.exists():
        raise UserError(f"{path} holds the figures of such a run already, and test classes are used once. Remove it.")
    run |= {
        "command": training_command(run),
        "commit": sessions[0].get("commit"),
        "iteration": best.iteration,
        "val_accuracy": best.validation_accuracy,
        "seconds": sum(session["seconds"] for session in sessions),
        "published_sha256": _publish(best, publish) if publish else None,
        "note": "",
        "evaluations": evaluations(best, read),
        "also": {other: measured_on(best, read, other) for other in also},
    }
    write_json(path, run)
    print(f"{path}: {figure(run)} %")


def _publish(checkpoint: Checkpoint, name: str) -> str:
    """Write `checkpoint` to `pretrained/`, without what its config says of our machine; return its SHA-256 sum."""
    config = {section: dict(values) for section, values in checkpoint.config.items()}
    for section, key, field in documented_keys():
        if f"{section}.{key}" in LOCAL:
            config[section][key] = field.default
    omniglot_runs.PRETRAINED.mkdir(exist_ok=True)
    path = omniglot_runs.PRETRAINED / f"{name}.pth"
    save_checkpoint(dataclasses.replace(checkpoint, config=config), path)
    return hashlib.sha256(path.read_bytes()).hexdigest()


def main() -> None:
    """Parse the command line, record or report."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.omniglot", description=__doc__.split("\n")[0])
    actions = parser.add_subparsers(dest="action", required=True)
    recording = actions.add_parser("record", help="evaluate a finished run on the test classes")
    recording.add_argument("run_dir", type=Path, help="the run folder")
    recording.add_argument("--publish", metavar="NAME", help="put the best checkpoint into pretrained/NAME.pth")
    recording.add_argument("--also", nargs="+", choices=CELLS, default=[], help="evaluate it on these tasks, too")
    measuring = actions.add_parser("protocols", help="evaluate the published networks under every published protocol")
    measuring.add_argument(
        "--networks", metavar="NAME", nargs="+", default=[], help="files in pretrained/ (default: all)"
    )
    measuring.add_argument("--protocols", nargs="+", choices=PROTOCOLS, default=list(PROTOCOLS), help="default: all")
    measuring.add_argument("--cells", nargs="+", choices=CELLS, default=list(CELLS), help="task sizes (default: all)")
    measuring.add_argument("--path", metavar="DATA", help="folder of the data set (default: the one of the training)")
    actions.add_parser("report", help="write RESULTS.md, RESULTS.csv, their picture and the model cards")
    arguments = parser.parse_args()
    if arguments.action == "record":
        record(arguments.run_dir, arguments.publish, arguments.also)
    elif arguments.action == "protocols":
        omniglot_protocols.measure(arguments.networks, arguments.protocols, arguments.cells, arguments.path)
    else:
        omniglot_report.write()


if __name__ == "__main__":
    commands.run(main)
