"""The folder that records a run, and from which it goes on."""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import os
import time
import warnings
from pathlib import Path

import yaml
from filelock import FileLock, Timeout

from maml_l2l.algorithms.scores import Evaluation
from maml_l2l.checkpoints.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from maml_l2l.config import Experiment, changed_keys
from maml_l2l.experiments.metrics_log import MetricsLog
from maml_l2l.reports.plots import plot_curves
from maml_l2l.system import distributed
from maml_l2l.system.errors import UserError
from maml_l2l.system.files import check_writable, make_folder, remove_leftovers, write_atomically, write_json
from maml_l2l.system.machine import machine

_log = logging.getLogger(__name__)

CONFIG, LAST, PREVIOUS, BEST = "config.yaml", "last.pth", "previous.pth", "best.pth"
SESSIONS = "sessions.json"

# What a resumed run may have otherwise: the folder of the data, who draws the tasks, and where and how often things are
# written.
FREE_ON_RESUME = ("data.root", "run.workers", "train.validate_every", "train.checkpoint_every", "run.tensorboard")


def holds_run(path: Path) -> bool:
    """Whether a run was started in the folder `path`."""
    return (path / CONFIG).exists()


def started_by(path: Path, job: str | None) -> bool:
    """Whether the torchrun that is called `job` has worked on the run in the folder `path`, the last of all."""
    sessions = _earlier_sessions(path)
    return holds_run(path) and (not sessions or sessions[-1].get("job") == job)


def refuse_used_folder(path: Path) -> None:
    """Raise `UserError` where the folder `path` already holds a run."""
    if holds_run(path):
        raise UserError(
            f"the folder {path} already holds a run, which is never overwritten. "
            "Go on with it by --resume, or name another with --run_dir."
        )


def saved_state(path: Path, experiment: Experiment) -> Checkpoint | None:
    """The newest whole checkpoint of the run in the folder `path`; None where it was stopped before it wrote any.

    A damaged `last.pth` is kept as `last.pth.damaged`, with a warning, and `previous.pth` taken. Raises `UserError`
    where there is no run, where neither can be read, and where `experiment` is another than the run's.
    """
    if not holds_run(path):
        raise UserError(f"the folder {path} holds no run to resume. Start it without --resume, or name its folder.")
    candidates = [path / name for name in (LAST, PREVIOUS) if (path / name).exists()]
    checkpoint, problems = None, []
    for candidate in candidates:
        try:
            checkpoint = load_checkpoint(candidate)
            break
        except UserError as error:
            problems.append(str(error))
    if checkpoint is None:
        metrics = path / "metrics.jsonl"  # empty until the first checkpoint stands
        if not problems and metrics.exists() and metrics.stat().st_size > 0:
            problems.append(f"its checkpoints {LAST} and {PREVIOUS} are gone. Put one back, or start another run.")
        if problems:
            raise UserError(f"the run cannot be resumed: {' '.join(problems)}")
        _log.info(f"{path} was stopped before anything was saved: starting from the beginning")
        return None
    if problems:
        os.replace(path / LAST, path / f"{LAST}.damaged")
        message = f"{problems[0]} Resuming from {candidate.name}, meta-iteration {checkpoint.iteration}, instead"
        warnings.warn(message, stacklevel=2)
    check_resumable(checkpoint.experiment, experiment, checkpoint.iteration)
    return checkpoint


def check_resumable(saved: Experiment, wanted: Experiment, done: int) -> None:
    """Raise `UserError` where a run of `saved`, after `done` meta-iterations, cannot go on as `wanted`.

    It may extend `train.iterations` and change the keys of `FREE_ON_RESUME`, nothing else.
    """
    changed = []
    for key, (old, new) in changed_keys(saved, wanted).items():
        extends = key == "train.iterations" and new >= max(old, done)
        if key not in FREE_ON_RESUME and not extends:
            changed.append(f"`{key}` was {old!r}, found {new!r}")
    if changed:
        raise UserError(
            f"the run cannot be resumed with another config: {'; '.join(changed)}. "
            "Put the values back, or start another run with --run_dir. A resumed run may only extend "
            f"train.iterations and change {', '.join(FREE_ON_RESUME)}."
        )


class RunFolder:
    """`config.yaml` (resolved), `sessions.json`, `metrics.jsonl`, `last.pth` and the one before it, `previous.pth`,
    `best.pth` (highest validation accuracy), `curves.png`, and on request TensorBoard events.

    `sessions.json` has an entry for each process that worked on the run: the meta-iterations done when it started
    (`from`) and when it last saved (`to`), the seconds in between, compiling included, the torchrun that started it
    (`job`), its machine, versions and commit.

    A context manager, which closes the files. A lock keeps a second process from writing to the same folder.
    """

    def __init__(
        self, path: Path, experiment: Experiment, resumed: Checkpoint | None = None, save_to: Path | None = None
    ):
        """resumed: what the run goes on from.  save_to: a second path for `best.pth`.

        Raises `UserError` where `path` or `save_to` cannot be written, or another process writes to `path`.
        """
        if save_to is not None:
            make_folder(save_to.parent)
            check_writable(save_to)
        self.save_to = save_to
        self.path = make_folder(path)
        self._lock = _locked(path)
        remove_leftovers(path)
        state = {"done": resumed.iteration, "size": resumed.metrics_bytes} if resumed else {}
        self._metrics = MetricsLog(path, experiment.run.tensorboard, **state)
        config = yaml.safe_dump(experiment.model_dump(), sort_keys=False)
        write_atomically(path / CONFIG, lambda file: file.write(config.encode()))
        self._sessions, self._started = [*_earlier_sessions(path), {}], time.perf_counter()
        self._session = {"from": resumed.iteration if resumed else 0, "job": distributed.job(), **machine()}
        self._best_accuracy = resumed.best_accuracy if resumed else None
        if resumed and (path / BEST).exists():
            self._copy_best()

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, *_: object) -> None:
        self._metrics.close()
        self._lock.release()

    def log(self, iteration: int, **values: float) -> None:
        """Append one line to the metrics."""
        self._metrics.write(iteration, **values)

    def save_last(self, checkpoint: Checkpoint) -> None:
        """Write `last.pth`, after the metrics that led to it; the one before becomes `previous.pth`."""
        record = {"metrics_bytes": self._metrics.sync(), "best_accuracy": self._best_accuracy}
        save_checkpoint(dataclasses.replace(checkpoint, **record), self.path / LAST, previous=self.path / PREVIOUS)
        seconds = round(time.perf_counter() - self._started, 1)
        self._sessions[-1] = self._session | {"to": checkpoint.iteration, "seconds": seconds}
        write_json(self.path / SESSIONS, self._sessions)

    def validated(self, checkpoint: Checkpoint, evaluation: Evaluation) -> None:
        """Log a validation, keep the weights where it is the best so far, and draw the curves."""
        accuracy, ci95 = evaluation.mean()[0], evaluation.ci95()[0]
        self.log(checkpoint.iteration, val_loss=evaluation.losses.mean().item(), val_accuracy=accuracy, val_ci95=ci95)
        mark = ""
        if accuracy > (-math.inf if self._best_accuracy is None else self._best_accuracy):
            self._best_accuracy, mark = accuracy, " (best)"
            save_checkpoint(dataclasses.replace(checkpoint, best_accuracy=accuracy), self.path / BEST)
            self._copy_best()
        _log.info(f"meta-iteration {checkpoint.iteration}: validation accuracy {accuracy:.2f} +- {ci95:.2f} %{mark}")
        self._metrics.sync()
        plot_curves(self.path / "metrics.jsonl", self.path / "curves.png", title=self.path.name)

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


def _earlier_sessions(path: Path) -> list[dict]:
    """The entries of `sessions.json`; what is not one costs a warning, because no result depends on it."""
    if not (path / SESSIONS).exists():
        return []
    try:
        sessions = json.loads((path / SESSIONS).read_text())
    except ValueError:
        sessions = None
    if not isinstance(sessions, list):
        warnings.warn(f"{path / SESSIONS} is damaged: the times of earlier sessions are lost", stacklevel=2)
        return []
    return sessions


def _locked(path: Path) -> FileLock:
    lock = FileLock(path / ".lock")
    try:
        lock.acquire(blocking=False)
    except Timeout:
        raise UserError(f"another process is writing to {path}. Stop it first, or name another --run_dir.") from None
    except OSError as error:
        raise UserError(f"cannot write to {path}: {error.strerror}. Name a folder that can be written.") from None
    return lock
