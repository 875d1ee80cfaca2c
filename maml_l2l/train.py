"""Meta-train from a YAML file: `python -m maml_l2l.train --config configs/omniglot_5w1s.yaml`."""

from __future__ import annotations

import argparse
from pathlib import Path

from maml_l2l import commands
from maml_l2l.config import load_experiment


def main() -> None:
    """Parse the command line, load the config, train."""
    parser = argparse.ArgumentParser(prog="python -m maml_l2l.train", description="Meta-train a network with MAML.")
    parser.add_argument("--config", metavar="FILE", help="YAML file of the experiment (default: documented defaults)")
    parser.add_argument(
        "--set",
        metavar="KEY=VALUE",
        nargs="+",
        action="extend",
        default=[],
        help="override, e.g. train.iterations=2000",
    )
    parser.add_argument("--run_dir", metavar="DIR", help="folder of this run (default: runs/<name of the config>)")
    parser.add_argument(
        "--resume",
        metavar="RUN_DIR",
        nargs="?",
        const="",
        help="go on with the run in RUN_DIR (default: --run_dir), without --config as it was configured",
    )
    arguments = parser.parse_args()
    config, run_dir = arguments.config, arguments.resume or arguments.run_dir
    if arguments.resume and config is None:
        config = Path(arguments.resume) / "config.yaml"
    experiment = load_experiment(config, arguments.set)
    run_dir = Path(run_dir or f"runs/{Path(config or experiment.data.name).stem}")

    from maml_l2l.training import train  # PyTorch and learn2learn load here, after the config has been checked

    train(experiment, run_dir, resume=arguments.resume is not None)
    if commands.is_first_process():
        print(f"Done. Evaluate with: python -m maml_l2l.eval --model {run_dir / 'best.pth'}")


if __name__ == "__main__":
    commands.run(main)
