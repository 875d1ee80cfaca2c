"""The folder that records a run."""

from __future__ import annotations

import math
from pathlib import Path

import yaml
from tqdm import tqdm

from maml_l2l import reporting
from maml_l2l.checkpoint import Checkpoint, save_checkpoint
from maml_l2l.config import Experiment
from maml_l2l.errors import UserError
from maml_l2l.evaluation import Evaluation
from maml_l2l.files import check_writable, make_folder, write_atomically


def refuse_used_folder(path: Path) -> None:
    """Raise `UserError` where the folder `path` already holds a run."""
    if (path / "config.yaml").exists():
        raise UserError(
            f"the folder {path} already holds a run, which is never overwritten. Name another with --run_dir."
        )


class RunFolder:
    """`config.yaml` (resolved), `versions.json`, `metrics.jsonl`, `last.pth`, `best.pth` (highest validation accuracy),
    `curves.png`, and on request TensorBoard events. A context manager, which closes the files.
    """

    def __init__(self, path: Path, experiment: Experiment, save_to: Path | None = None):
        """`save_to`: a second path for `best.pth`. Raises `UserError` where `path` or `save_to` cannot be written."""
        if save_to is not None:
            make_folder(save_to.parent)
            check_writable(save_to)
        self.save_to = save_to
        self.path = make_folder(path)
        self._metrics = reporting.MetricsLog(path, experiment.run.tensorboard)
        config = yaml.safe_dump(experiment.model_dump(), sort_keys=False)
        write_atomically(path / "config.yaml", lambda file: file.write(config.encode()))
        reporting.write_json(path / "versions.json", reporting.versions())
        self._best_accuracy = -math.inf

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, *_: object) -> None:
        self._metrics.close()

    def log(self, iteration: int, **values: float) -> None:
        """Append one line to the metrics."""
        self._metrics.write(iteration, **values)

    def save_last(self, checkpoint: Checkpoint) -> None:
        """Write `last.pth`, after the metrics that led to it."""
        self._metrics.flush()
        save_checkpoint(checkpoint, self.path / "last.pth")

    def validated(self, checkpoint: Checkpoint, evaluation: Evaluation) -> None:
        """Log a validation, keep the weights where it is the best so far, and draw the curves."""
        accuracy, ci95 = evaluation.mean()[0], evaluation.ci95()[0]
        self.log(checkpoint.iteration, val_loss=evaluation.losses.mean().item(), val_accuracy=accuracy, val_ci95=ci95)
        mark = ""
        if accuracy > self._best_accuracy:
            self._best_accuracy, mark = accuracy, " (best)"
            save_checkpoint(checkpoint, self.path / "best.pth")
            if self.save_to is not None:
                save_checkpoint(checkpoint, self.save_to)
        tqdm.write(f"meta-iteration {checkpoint.iteration}: validation accuracy {accuracy:.2f} +- {ci95:.2f} %{mark}")
        self._metrics.flush()
        reporting.plot_curves(self.path / "metrics.jsonl", self.path / "curves.png", title=self.path.name)
