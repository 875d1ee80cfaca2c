"""Evaluate a checkpoint: `python -m maml_l2l.eval --model runs/omniglot_5w1s/best.pth`."""

from __future__ import annotations

import argparse
import os

from maml_l2l import commands
from maml_l2l.config import PROTOCOLS, under_protocol
from maml_l2l.pretrained import find_checkpoint
from maml_l2l.system.files import check_outputs, user_path, write_json


def main() -> None:
    """Parse the command line, evaluate, report."""
    arguments = _parser().parse_args()

    # PyTorch and learn2learn load here, not for --help
    from maml_l2l.checkpoints.checkpoint import load_pretrained
    from maml_l2l.experiments.evaluation import evaluate, on_this_machine
    from maml_l2l.pretrained import files_of
    from maml_l2l.reports import plots, tables

    plots.check_ending(arguments.plot)
    given = commands.use_named_backbone(arguments.set)
    ensemble = [find_checkpoint(name) for name in arguments.ensemble]
    check_outputs([arguments.json, arguments.plot], [*files_of(arguments.model), *ensemble])
    checkpoint = load_pretrained(arguments.model, given.get("weights"))
    trained = on_this_machine(checkpoint.experiment)
    asked = _overrides(arguments), "the command line", arguments.set
    experiment = under_protocol(trained, arguments.protocol, *asked)
    if experiment.data.name == "folder":
        check_outputs([arguments.plot], [experiment.data.root])
    networks, progress = {"protocol": arguments.protocol, "ensemble": ensemble}, commands.is_first_process()
    evaluation = evaluate(checkpoint, experiment, arguments.split, **networks, progress=progress)
    if not commands.is_first_process():
        return
    protocol = tables.evaluation_protocol(experiment, arguments.split, arguments.protocol, arguments.ensemble)
    if arguments.json:
        write_json(arguments.json, tables.evaluation_json(evaluation, protocol))
    if arguments.plot:
        plots.plot_evaluation(evaluation, arguments.plot, tables.evaluation_title(protocol))
    print(tables.evaluation_title(protocol))
    print(tables.evaluation_table(evaluation))
    for note in tables.evaluation_notes(evaluation, protocol):
        print(f"note: {note}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m maml_l2l.eval", description="Accuracy of a checkpoint on tasks of unseen classes."
    )
    parser.add_argument(
        "--model",
        metavar="CHECKPOINT",
        required=True,
        type=os.path.expanduser,
        help="a .pth file, a name in pretrained/, photos, timm:NAME or torchvision:NAME",
    )
    parser.add_argument(
        "--path",
        metavar="DATA",
        type=os.path.expanduser,
        help="folder of the data set (default: the one of the checkpoint)",
    )
    parser.add_argument("--split", choices=["train", "val", "test"], default="test", help="classes (default: test)")
    parser.add_argument(
        "--protocol",
        choices=PROTOCOLS,
        help="measure as this publication did; other options change single settings",
    )
    parser.add_argument(
        "--ensemble",
        metavar="CHECKPOINT",
        type=os.path.expanduser,
        nargs="+",
        default=[],
        help="average the outputs of --model and these",
    )
    parser.add_argument("--tasks", type=int, help="number of tasks (default: the checkpoint's eval.tasks)")
    parser.add_argument("--n_way", type=int, help="classes a task (default: as trained)")
    parser.add_argument("--k_shot", type=int, help="support images a class (default: as trained)")
    parser.add_argument("--n_query", type=int, help="query images a class (default: as trained)")
    parser.add_argument("--steps", type=int, help="inner steps (default: the checkpoint's eval.steps)")
    parser.add_argument("--normalisation", choices=["batch", "support"], help="statistics used (default: as trained)")
    commands.add_set_option(parser, example="data.invert=true")
    parser.add_argument("--json", metavar="FILE", type=user_path, help="write the figures as JSON")
    parser.add_argument("--plot", metavar="FILE", type=user_path, help="draw accuracy against inner steps")
    commands.add_version_option(parser)
    return parser


def _overrides(arguments: argparse.Namespace) -> dict[str, object]:
    return {
        "data.root": arguments.path,
        "task.ways": arguments.n_way,
        "task.shots": arguments.k_shot,
        "task.queries": arguments.n_query,
        "algorithm.normalisation": arguments.normalisation,
        "eval.tasks": arguments.tasks,
        "eval.steps": arguments.steps,
    }


if __name__ == "__main__":
    commands.run(main)
