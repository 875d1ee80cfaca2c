"""Calibrate a checkpoint: `python -m maml_l2l.calibrate --model CHECKPOINT --save_to FILE`."""

from __future__ import annotations

import argparse
import os

from maml_l2l import commands
from maml_l2l.config import with_overrides
from maml_l2l.pretrained import find_checkpoint
from maml_l2l.system.files import check_outputs, user_path


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m maml_l2l.calibrate",
        description="Learn the temperature by which a checkpoint's probabilities mean what they say.",
    )
    parser.add_argument(
        "--model",
        metavar="CHECKPOINT",
        required=True,
        type=os.path.expanduser,
        help="a .pth file, or a name in pretrained/",
    )
    parser.add_argument(
        "--save_to", metavar="FILE", required=True, type=user_path, help="where the calibrated checkpoint goes"
    )
    parser.add_argument(
        "--path",
        metavar="DATA",
        type=os.path.expanduser,
        help="folder of the data set (default: the one of the checkpoint)",
    )
    parser.add_argument(
        "--tasks", type=int, default=200, metavar="N", help="tasks of each number of ways (default: 200)"
    )
    commands.add_set_option(parser, example="task.shots=5")
    commands.add_version_option(parser)
    return parser


def main() -> None:
    """Parse the command line, calibrate, report."""
    parser = _parser()
    arguments = parser.parse_args()
    if arguments.tasks < 1:
        parser.error(f"--tasks: expected 1 or more, found {arguments.tasks}")

    # PyTorch and learn2learn load here, not for --help
    from maml_l2l.checkpoints.checkpoint import load_pretrained, save_checkpoint
    from maml_l2l.experiments.calibration import calibrated
    from maml_l2l.experiments.evaluation import on_this_machine
    from maml_l2l.reports import tables

    commands.use_named_backbone(arguments.set)
    model = find_checkpoint(arguments.model)
    check_outputs([arguments.save_to], [model])
    checkpoint = load_pretrained(model)
    trained = on_this_machine(checkpoint.experiment)
    experiment = with_overrides(trained, {"data.root": arguments.path}, "the command line", arguments.set)
    found, rows = calibrated(checkpoint, experiment, tasks=arguments.tasks, progress=True)
    save_checkpoint(found, arguments.save_to)
    print(tables.calibration_table(found.temperature, rows))


if __name__ == "__main__":
    commands.run(main)
