"""What a run folder holds before a run starts in it, or goes on: who may, and from where."""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from maml_l2l.checkpoints.checkpoint import Checkpoint, load_checkpoint
from maml_l2l.config import Experiment, changed_keys
from maml_l2l.experiments.metrics_log import check_tensorboard
from maml_l2l.pretrained import find_checkpoint
from maml_l2l.system.errors import UserError, listing
from maml_l2l.system.files import check_outputs, check_regular, make_folder, open_regular, reason
from maml_l2l.system.messages import warn_user
from maml_l2l.system.run_files import BEST, CONFIG, LAST, LOCK, METRICS, NAMES, PREVIOUS, SESSIONS, TENSORBOARD
from maml_l2l.system.torch_files import UnreadableFile

_log = logging.getLogger(__name__)

_MAX_SESSIONS = 2**24  # bytes

# What a resumed run may have otherwise: the folder of the data, who draws the tasks, and where and how often things are
# written.
FREE_ON_RESUME = ("data.root", "run.workers", "train.validate_every", "train.checkpoint_every", "run.tensorboard")


def beginning(
    experiment: Experiment, run_dir: Path, save_to: Path | None, resume: bool, stack: contextlib.ExitStack
) -> tuple[Checkpoint | None, Checkpoint | None]:
    """The checkpoint that a run goes on from, and the pretrained one that a new run starts from; None where none is.

    The folder is claimed until `stack` closes. Raises `UserError` where the run cannot begin in it.
    """
    path = experiment.model.pretrained
    pretrained = None if path is None else find_checkpoint(path)
    if experiment.run.tensorboard:
        check_tensorboard()
    check_folder(run_dir, resume)  # leaves no trace in a folder that does not serve
    stack.enter_context(claimed(run_dir, save_to, inputs=[] if pretrained is None else [pretrained]))
    check_folder(run_dir, resume)  # another process may just have finished there
    saved = saved_state(run_dir, experiment) if resume else None
    return saved, load_checkpoint(pretrained) if saved is None and pretrained is not None else None


@contextlib.contextmanager
def claimed(path: Path, save_to: Path | None = None, inputs: Iterable[str | Path] = ()) -> Iterator[None]:
    """Keep other processes from the run in the folder `path`, which is created, for as long as the context is open.

    save_to: a second path for `best.pth`, which may be none of the run's files and none of `inputs`, those that it
    reads. A folder in which nothing came of it is removed.
    Raises `UserError` where another process has claimed it, where a folder or a pipe stands in place of one of its
    files, and where it or `save_to` cannot be written.
    """
    is_new = not os.path.exists(path)
    make_folder(path)
    lock = _locked(path)
    try:
        _check_files(path)
        own = {path / name for name in (*NAMES, LOCK)} - {path / BEST}
        check_outputs([save_to], [*own, *inputs])
        yield
    finally:
        with contextlib.suppress(OSError):
            if is_new and os.listdir(path) == [LOCK]:
                (path / LOCK).unlink()
                path.rmdir()
        lock.release()


def _locked(path: Path) -> FileLock:
    lock = FileLock(path / LOCK)
    try:
        if (path / LOCK).is_symlink():
            raise UserError(f"{path / LOCK} is a link, and nothing is written through links. Remove it.")
        lock.acquire(blocking=False)
    except Timeout:
        raise UserError(f"another process is writing to {path}. Stop it first, or name another --run_dir.") from None
    except OSError as error:
        raise UserError(f"cannot write to {path}: {reason(error)}. Name a folder that can be written.") from None
    return lock


def _check_files(path: Path) -> None:
    for name in NAMES:
        try:
            check_regular(os.stat(path / name), path / name)
        except FileNotFoundError:
            pass
        except OSError as error:
            raise UserError(f"the run cannot use {path / name}: {reason(error)}. Move it away.") from None


def holds_run(path: Path) -> bool:
    """Whether a run was started in the folder `path`."""
    return (path / CONFIG).exists()


def started_by(path: Path, job: str | None) -> bool:
    """Whether the torchrun that is called `job` has worked on the run in the folder `path`, the last of all."""
    sessions = earlier_sessions(path)
    return bool(holds_run(path) and job and sessions and sessions[-1].get("job") == job)


def check_folder(path: Path, resume: bool) -> None:
    """Raise `UserError` where the folder `path` holds no run to resume, or files that a new run would overwrite."""
    if resume:
        if not holds_run(path):
            raise UserError(f"the folder {path} holds no run to resume. Start it without --resume, or name its folder.")
        return
    if holds_run(path):
        raise UserError(
            f"the folder {path} already holds a run, which is never overwritten. "
            "Go on with it by --resume, or name another with --run_dir."
        )
    taken = [name for name in (*NAMES, TENSORBOARD) if os.path.lexists(path / name)]
    if taken:
        raise UserError(
            f"the folder {path} already holds {listing(taken)}, which a run would overwrite. "
            "Move that away, or name another folder with --run_dir."
        )


def saved_state(path: Path, experiment: Experiment) -> Checkpoint | None:
    """The newest whole checkpoint of the run in the folder `path`; None where it was stopped before it wrote any.

    A damaged `last.pth` is kept as `last.pth.damaged`, with a warning, and `previous.pth` taken. Raises `UserError`
    where neither can be read, and where `experiment` is another than the run's.
    """
    candidates = [path / name for name in (LAST, PREVIOUS) if os.path.lexists(path / name)]
    checkpoint, problems = None, []
    for candidate in candidates:
        try:
            checkpoint = _resumable(candidate)
            break
        except UnreadableFile:  # it may be whole, and newer than the other one
            raise
        except UserError as error:
            problems.append(str(error))
    if checkpoint is None:
        metrics = path / METRICS  # empty until the first checkpoint stands
        if not problems and metrics.exists() and metrics.stat().st_size > 0:
            problems.append(f"its checkpoints {LAST} and {PREVIOUS} are gone. Put one back, or start another run.")
        if problems:
            raise UserError(f"the run cannot be resumed: {' '.join(problems)}")
        _log.info(f"{path} was stopped before anything was saved: starting from the beginning")
        return None
    check_resumable(checkpoint.experiment, experiment, checkpoint.iteration)
    if problems:
        kept = set_aside(path / LAST)
        message = f"{problems[0]} It is kept as {kept.name}. "
        message += f"Resuming from {candidate.name}, meta-iteration {checkpoint.iteration}, instead"
        warn_user(message)
    return checkpoint


def _resumable(path: Path) -> Checkpoint:
    checkpoint = load_checkpoint(path)
    if checkpoint.optimizer is None:
        raise UserError(f"{path} lacks the state of the optimizer, as a {BEST} does, so no run goes on from it.")
    return checkpoint


def set_aside(path: Path) -> Path:
    """Rename a damaged file, which somebody may want to look at, and give its new path."""
    names = (f"{path.name}.damaged{number or ''}" for number in itertools.count())
    kept = next(path.with_name(name) for name in names if not os.path.lexists(path.with_name(name)))
    try:
        os.replace(path, kept)
    except OSError as error:
        raise UserError(f"cannot rename {path}, which is damaged: {reason(error)}. Move it away.") from None
    return kept


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


def earlier_sessions(path: Path) -> list[dict]:
    """The entries of `sessions.json`; what is not one costs a warning, because no result depends on it."""
    try:
        with open_regular(path / SESSIONS) as file:
            sessions = json.loads(file.read(_MAX_SESSIONS))
    except FileNotFoundError:
        return []
    except (OSError, ValueError, RecursionError):
        sessions = None
    if not isinstance(sessions, list) or not all(isinstance(session, dict) for session in sessions):
        warn_user(f"{path / SESSIONS} is damaged: the times of earlier sessions are lost")
        return []
    return sessions
