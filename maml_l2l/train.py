"""Meta-train from a YAML file: `python -m maml_l2l.train --config configs/omniglot_5w1s.yaml`."""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

from maml_l2l import commands
from maml_l2l.config import load_experiment
from maml_l2l.data.omniglot_folder import check_no_part, holds_omniglot
from maml_l2l.system.errors import UserError, printable
from maml_l2l.system.files import check_outputs, user_path


def main() -> None:
    """Parse the command line, load the config, train."""
    arguments = _parser().parse_args()
    named = arguments.save_to or arguments.config
    run_dir = arguments.resume or arguments.run_dir or (f"runs/{Path(named).stem}" if named else None)
    config = arguments.config
    if arguments.resume is not None and config is None:
        if run_dir is None:
            raise UserError("--resume names no run, and nothing else does. Give it the folder of the run.")
        config = Path(run_dir) / "config.yaml"
    experiment = load_experiment(config, [*_overrides(arguments), *arguments.set])
    run_dir = Path(run_dir or f"runs/{experiment.data.name}")

    # PyTorch and learn2learn load here, after the config has been checked
    from maml_l2l.experiments.training import train

    check_outputs([arguments.save_to], [] if config is None else [config])
    resume, progress = arguments.resume is not None, commands.is_first_process()
    train(experiment, run_dir, arguments.save_to, resume, progress=progress)
    if commands.is_first_process():
        best = printable(shlex.quote(str(arguments.save_to or run_dir / "best.pth")))
        print(f"Done. Evaluate with: python -m maml_l2l.eval --model {best}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m maml_l2l.train", description="Meta-train a network with MAML.")
    parser.add_argument(
        "--config",
        metavar="FILE",
        type=user_path,
        help="YAML file of the experiment (default: documented defaults)",
    )
    commands.add_set_option(parser, example="train.iterations=2000")
    parser.add_argument(
        "--dataset_path", metavar="DIR", type=os.path.expanduser, help="folder of the data set: Omniglot, or your own"
    )
    parser.add_argument("--n_way", type=int, help="classes a task")
    parser.add_argument("--k_shot", type=int, help="support images a class")
    parser.add_argument("--n_query", type=int, help="query images a class")
    parser.add_argument("--inner_iters", type=int, help="gradient steps of the inner loop")
    parser.add_argument("--iters", type=int, help="meta-iterations an epoch")
    parser.add_argument("--epochs", type=int, help="how many times --iters meta-iterations (default: 1)")
    parser.add_argument("--save_to", metavar="FILE", type=user_path, help="where the best checkpoint is written, too")
    parser.add_argument(
        "--run_dir",
        metavar="DIR",
        type=os.path.expanduser,
        help="folder of this run (default: runs/<name of --save_to or of the config>)",
    )
    parser.add_argument(
        "--resume",
        metavar="RUN_DIR",
        type=os.path.expanduser,
        nargs="?",
        const="",
        help="go on with the run in RUN_DIR (default: --run_dir), without --config as it was configured",
    )
    commands.add_version_option(parser)
    return parser


def _overrides(arguments: argparse.Namespace) -> Iterator[str]:
    """The flags as `--set` takes them: in a new run without a config, a folder is what it looks like."""
    keys = {
        "data.root": arguments.dataset_path,
        "task.ways": arguments.n_way,
        "task.shots": arguments.k_shot,
        "task.queries": arguments.n_query,
        "algorithm.inner_steps": arguments.inner_iters,
    }
    if arguments.dataset_path is not None and arguments.config is None and arguments.resume is None:
        keys["data.name"] = "omniglot" if holds_omniglot(arguments.dataset_path) else "folder"
        if keys["data.name"] == "folder":
            check_no_part(arguments.dataset_path)
    if arguments.iters is not None:
        keys["train.iterations"] = arguments.iters * (1 if arguments.epochs is None else arguments.epochs)
    elif arguments.epochs is not None:
        raise UserError(f"--epochs {arguments.epochs}: an epoch is --iters meta-iterations, so give --iters too.")
    return (f"{key}={_as_yaml(value)}" for key, value in keys.items() if value is not None)


def _as_yaml(value: str | int) -> str:
    """JSON, but for characters beyond 16 bits: JSON writes a pair for one, which YAML would read as two."""

    def escaped(pair: re.Match[str]) -> str:
        character: str = json.loads(f'"{pair[0]}"')
        return f"\\U{ord(character):08x}"

    return re.sub(r"\\ud[89ab]..\\ud[c-f]..", escaped, json.dumps(value))


if __name__ == "__main__":
    commands.run(main)
