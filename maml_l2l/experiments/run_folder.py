"""The folder that records a run, and from which it goes on."""

from __future__ import annotations

import dataclasses
import logging
import math
import time
from pathlib import Path

import yaml

from maml_l2l.algorithms.scores import Evaluation
from maml_l2l.checkpoints.checkpoint import Checkpoint, save_checkpoint
from maml_l2l.config import Experiment
from maml_l2l.experiments.best_checkpoints import BestCheckpoints
from maml_l2l.experiments.metrics_log import MetricsLog
from maml_l2l.experiments.resuming import earlier_sessions
from maml_l2l.reports.plots import plot_curves
from maml_l2l.system import distributed
from maml_l2l.system.errors import Stopped
from maml_l2l.system.files import write_atomically, write_json
from maml_l2l.system.machine import machine
from maml_l2l.system.messages import warn_user
from maml_l2l.system.run_files import BEST, CONFIG, CURVES, LAST, METRICS, PREVIOUS, SESSIONS

_log = logging.getLogger(__name__)

_SECONDS_BETWEEN_CURVES = 10  # drawing takes half a second, in which a GPU does hundreds of meta-iterations


class RunFolder:
    """`config.yaml` (resolved), `sessions.json`, `metrics.jsonl`, `last.pth` and the one before it, `previous.pth`,
    `best.pth` (highest validation accuracy) and the next best ones (`BestCheckpoints`), `curves.png`, and on request
    TensorBoard events.

    `sessions.json` has an entry for each process that worked on the run: the meta-iterations done when it started
    (`from`) and when it last saved (`to`), the seconds in between, compiling included, the torchrun that started it
    (`job`), its machine, versions and commit.

    A context manager, which closes the files. The folder has to be `claimed`.
    """

    def __init__(
        self, path: Path, experiment: Experiment, resumed: Checkpoint | None = None, save_to: Path | None = None
    ):
        """resumed: what the run goes on from.  save_to: a second path for `best.pth`.

        Raises `UserError` where `path` or `save_to` cannot be written.
        """
        self.path, self.save_to = path, save_to
        config = yaml.safe_dump(experiment.model_dump(), sort_keys=False)
        write_atomically(path / CONFIG, lambda file: file.write(config.encode()))
        self._sessions, self._started = [*earlier_sessions(path), {}], time.perf_counter()
        self._session = {"from": resumed.iteration if resumed else 0, "job": distributed.job(), **machine()}
        self._curves_drawn, self._curves_lack = self._started, resumed is not None  # a kill may have come before
        self._write_session(self._session["from"])  # so that a restarted job knows its run from the first moment on
        state = {"done": resumed.iteration, "size": resumed.metrics_bytes} if resumed else {}
        self._metrics = MetricsLog(path, experiment.run.tensorboard, **state)
        self._best_accuracy = resumed.best_accuracy if resumed else None
        self._best = BestCheckpoints(path, experiment.train.keep_best)
        if resumed is not None:
            if not self._best.find(resumed):
                self._best_accuracy = self._best.accuracy
            if (path / BEST).exists():
                self._copy_best()

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._curves_lack and (kind is None or issubclass(kind, Stopped)):
            self._draw_curves()
        self._metrics.close()

    def log(self, iteration: int, **values: float) -> None:
        """Append one line to the metrics."""
        self._metrics.write(iteration, **values)

    def save_last(self, checkpoint: Checkpoint) -> None:
        """Write `last.pth`, after the metrics that led to it; the one before becomes `previous.pth`."""
        record = {"metrics_bytes": self._metrics.sync(), "best_accuracy": self._best_accuracy}
        save_checkpoint(dataclasses.replace(checkpoint, **record), self.path / LAST, previous=self.path / PREVIOUS)
        self._write_session(checkpoint.iteration)

    def _write_session(self, done: int) -> None:
        seconds = round(time.perf_counter() - self._started, 1)
        self._sessions[-1] = self._session | {"to": done, "seconds": seconds}
        write_json(self.path / SESSIONS, self._sessions)

    def validated(self, checkpoint: Checkpoint, evaluation: Evaluation) -> None:
        """Log a validation, keep the weights where it is the best so far, and draw the curves now and then."""
        accuracy, ci95 = evaluation.mean()[0], evaluation.ci95()[0]
        self.log(checkpoint.iteration, val_loss=evaluation.losses.mean().item(), val_accuracy=accuracy, val_ci95=ci95)
        mark = ""
        if accuracy > (-math.inf if self._best_accuracy is None else self._best_accuracy):
            self._best_accuracy, mark = accuracy, " (best)"
        if self._best.add(checkpoint, accuracy):
            self._copy_best()
        _log.info(f"meta-iteration {checkpoint.iteration}: validation accuracy {accuracy:.2f} +- {ci95:.2f} %{mark}")
        self._metrics.sync()
        self._curves_lack = True
        if time.perf_counter() - self._curves_drawn > _SECONDS_BETWEEN_CURVES:
            self._draw_curves()

    def _draw_curves(self) -> None:
        try:
            plot_curves(self.path / METRICS, self.path / CURVES, title=self.path.name)
        except Exception as error:  # whatever the file of metrics holds: no result depends on a picture
            warn_user(f"the curves could not be drawn: {error}")
        self._curves_drawn, self._curves_lack = time.perf_counter(), False

    def _copy_best(self) -> None:
        if self.save_to is not None:
            best = (self.path / BEST).read_bytes()
            write_atomically(self.save_to, lambda file: file.write(best))


class NoRunFolder:
    """What the other processes of a distributed run have in its place: they write nothing."""

    def __enter__(self) -> NoRunFolder:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def log(self, iteration: int, **values: float) -> None:
        """See `RunFolder.log`."""

    def save_last(self, checkpoint: Checkpoint) -> None:
        """See `RunFolder.save_last`."""

    def validated(self, checkpoint: Checkpoint, evaluation: Evaluation) -> None:
        """See `RunFolder.validated`."""
