"""The paper's Omniglot table from runs of our own.

    python -m benchmarks.omniglot record runs/omniglot_5w1s [--publish]
    python -m benchmarks.omniglot report

`record` evaluates the best checkpoint of a finished run on the test classes, once, and writes what it found, with the
config, time and machine of the training, to `benchmarks/results/omniglot/`; `--publish` also puts the checkpoint into
`pretrained/`. `report` turns these files into `RESULTS.md`, its picture and the model cards.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
from pathlib import Path

from benchmarks import omniglot_report
from benchmarks.omniglot_report import LOCAL
from maml_l2l import commands
from maml_l2l.checkpoints.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from maml_l2l.config import Experiment, documented_keys, with_overrides
from maml_l2l.experiments.evaluation import evaluate_checkpoint
from maml_l2l.experiments.run_folder import BEST, LAST, SESSIONS
from maml_l2l.reports.tables import evaluation_json, evaluation_protocol
from maml_l2l.system.errors import UserError
from maml_l2l.system.files import write_json


def cell(experiment: Experiment) -> str:
    """The paper's name of a task size, as in the names of the configs: `5w1s`."""
    return f"{experiment.task.ways}w{experiment.task.shots}s"


def evaluations(checkpoint: Checkpoint, experiment: Experiment) -> dict:
    """Accuracy on test tasks after 0, 1, ... inner steps, under both readings of normalisation."""
    found = {}
    for normalisation in ("batch", "support"):
        read = with_overrides(experiment, {"algorithm.normalisation": normalisation}, "the benchmark")
        evaluation = evaluate_checkpoint(checkpoint, read, "test")
        found[normalisation] = evaluation_json(evaluation, evaluation_protocol(read, "test"))
    return found


def record(run_dir: Path, publish: bool) -> None:
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
    run = {
        "cell": cell(experiment),
        "order": experiment.algorithm.order,
        "seed": experiment.run.seed,
        "config": experiment.model_dump(),
    }
    path = omniglot_report.RESULTS / f"{omniglot_report.run_name(run)}.json"
    if path.exists():
        raise UserError(f"{path} holds the figures of such a run already, and test classes are used once. Remove it.")
    sessions = json.loads((run_dir / SESSIONS).read_text())
    run |= {
        "commit": sessions[0].get("commit"),
        "iteration": best.iteration,
        "val_accuracy": best.validation_accuracy,
        "seconds": sum(session["seconds"] for session in sessions),
        "sessions": sessions,
        "published_sha256": _publish(best) if publish else None,
        "evaluations": evaluations(best, experiment),
    }
    write_json(path, run)
    print(f"{path}: {omniglot_report.figure(run)} %")


def _publish(checkpoint: Checkpoint) -> str:
    """Write `checkpoint` to `pretrained/`, without what its config says of our machine; return its SHA-256 sum."""
    config = {section: dict(values) for section, values in checkpoint.config.items()}
    for section, name, field in documented_keys():
        if f"{section}.{name}" in LOCAL:
            config[section][name] = field.default
    omniglot_report.PRETRAINED.mkdir(exist_ok=True)
    path = omniglot_report.PRETRAINED / f"omniglot_{cell(checkpoint.experiment)}.pth"
    save_checkpoint(dataclasses.replace(checkpoint, config=config), path)
    return hashlib.sha256(path.read_bytes()).hexdigest()


def main() -> None:
    """Parse the command line, record or report."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.omniglot", description=__doc__.split("\n")[0])
    actions = parser.add_subparsers(dest="action", required=True)
    recording = actions.add_parser("record", help="evaluate a finished run on the test classes")
    recording.add_argument("run_dir", type=Path, help="the run folder")
    recording.add_argument("--publish", action="store_true", help="put the best checkpoint into pretrained/")
    actions.add_parser("report", help="write RESULTS.md, its picture and the model cards")
    arguments = parser.parse_args()
    if arguments.action == "record":
        record(arguments.run_dir, arguments.publish)
    else:
        omniglot_report.write()


if __name__ == "__main__":
    commands.run(main)
