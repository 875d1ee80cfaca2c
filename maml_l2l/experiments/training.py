"""The outer loop."""

from __future__ import annotations

import contextlib
import logging
import shlex
from pathlib import Path

from maml_l2l.algorithms.transforms import TRANSFORMS
from maml_l2l.backbones import use_backbone
from maml_l2l.config import Algorithm, Experiment, load_experiment
from maml_l2l.data.sources import class_split, load_data, split_in_words
from maml_l2l.experiments.agreement import check_same_data, check_same_experiment
from maml_l2l.experiments.resuming import beginning, started_by
from maml_l2l.experiments.run_folder import NoRunFolder, RunFolder
from maml_l2l.experiments.trainer import MetaTrainer
from maml_l2l.system import distributed
from maml_l2l.system.device import computing, find_device, seeded
from maml_l2l.system.errors import UserError, printable
from maml_l2l.system.files import user_path
from maml_l2l.system.interruption import StopRequests
from maml_l2l.system.messages import progress_bar, progress_bars

_log = logging.getLogger(__name__)


def train(
    experiment: Experiment | str | Path,
    run_dir: str | Path,
    save_to: str | Path | None = None,
    resume: bool = False,
    *,
    progress: bool = False,
) -> None:
    """Meta-train as `experiment`, or the YAML file of that path, says; leave all in the folder `run_dir`: `RunFolder`.

    save_to: a second path for the best checkpoint.  resume: go on with the run that `run_dir` holds; so it is when
    torchrun starts again, after a process died, what it had started.  progress: show bars on a terminal.
    Raises `UserError` where the data cannot serve the tasks, where `run_dir` already holds a run (resume: holds none,
    or one of another config), where it or `save_to` cannot be written, and where a loss or meta-gradient is not finite.
    Raises `Stopped` after SIGINT, SIGTERM or SIGHUP, with everything saved.

    >>> import maml_l2l
    >>> small = ["data.name=glyphs", "data.alphabets=3", "task.ways=3", "model.filters=4", "train.meta_batch=2"]
    >>> experiment = maml_l2l.load_experiment(None, [*small, "train.iterations=2", "train.validate_tasks=2"])
    >>> maml_l2l.train(experiment, "runs/small", save_to="small.pth")
    >>> maml_l2l.load_checkpoint("small.pth").iteration
    2
    """
    if not isinstance(experiment, Experiment):
        experiment = load_experiment(experiment)
    _check_steps(experiment.algorithm)
    run_dir, save_to = user_path(run_dir), None if save_to is None else user_path(save_to)
    use_backbone(experiment.model.name)
    with progress_bars(progress):
        _train(experiment, run_dir, save_to, resume)


def _check_steps(algorithm: Algorithm) -> None:
    """Raise `UserError` where the run has something to learn for inner steps, and takes none."""
    found = [key for key in ("learn_inner_lr", "norm_per_step") if getattr(algorithm, key)]
    found += ["update"] if algorithm.update in TRANSFORMS else []
    if algorithm.inner_steps == 0 and found:
        raise UserError(
            f"`algorithm.inner_steps` should be at least 1, found 0: without a step `algorithm.{found[0]}` learns "
            "nothing. Take a step, or leave it out."
        )


def _train(experiment: Experiment, run_dir: Path, save_to: Path | None, resume: bool) -> None:
    run = experiment.run
    device = find_device(run.device)
    with (
        computing(device, run.threads, run.precision),
        seeded(run.seed, device),
        distributed.process_group(device),
        contextlib.ExitStack() as stack,
    ):
        check_same_experiment(experiment)
        resume = resume or (distributed.restarted() and started_by(run_dir, distributed.job()))
        # The first process reads them for all: there may be no folder that all machines share.
        saved, pretrained = distributed.from_first(lambda: beginning(experiment, run_dir, save_to, resume, stack))
        images = distributed.one_a_machine_first(lambda: load_data(experiment.data))
        with distributed.together():
            trainer = MetaTrainer(experiment, images, class_split(experiment.data, images), device)
            if experiment.data.name == "folder" and distributed.rank() == 0:
                _log.info(split_in_words(experiment.data, images, trainer.split))
            if saved is not None:
                trainer.restore(saved)
            elif pretrained is not None:
                trainer.start_from(pretrained)
            else:
                trainer.take_library_weights()
        check_same_data(images, trainer.split)
        folder: RunFolder | NoRunFolder = NoRunFolder()
        with distributed.together():
            if distributed.rank() == 0:
                folder = stack.enter_context(RunFolder(run_dir, experiment, saved, save_to))
                if saved is None:
                    folder.save_last(trainer.checkpoint())
                else:
                    _log.info(f"resuming {run_dir} after {trainer.done} meta-iterations")
        _run(trainer, folder, printable(run_dir.name), _resume_command(run_dir, save_to))


def _resume_command(run_dir: Path, save_to: Path | None) -> str:
    options = ["--resume", str(run_dir), *(["--save_to", str(save_to)] if save_to is not None else [])]
    return f"python -m maml_l2l.train {shlex.join(options)}"


def _run(trainer: MetaTrainer, folder: RunFolder | NoRunFolder, name: str, resume_command: str) -> None:
    """The outer loop to its end or to a signal; validates, logs and saves on the way, and first what it starts from."""
    settings = trainer.experiment.train
    model = trainer.experiment.model
    if trainer.done == 0 and (model.pretrained is not None or model.weights not in (None, "none")):
        evaluation = trainer.validate()
        folder.validated(trainer.validated(), evaluation)
    with StopRequests(f"{resume_command} goes on where it stopped.") as stop:
        total = {"total": settings.iterations, "initial": trainer.done, "unit": "it"}
        progress = progress_bar(trainer.iterations(), name, **total)
        for step in progress:
            stop.at_once = False
            folder.log(step.number, loss=step.loss, accuracy=step.accuracy, meta_lr=step.meta_lr)
            rates = f"loss {step.loss:.3f}, accuracy {step.accuracy:.1f} %, meta_lr {step.meta_lr:.1e}"
            progress.set_postfix_str(rates, refresh=False)
            last = step.number == settings.iterations
            stopping = distributed.any_process(stop.signal_number is not None, trainer.device)
            if last or step.number % settings.validate_every == 0:
                evaluation = trainer.validate()
                folder.validated(trainer.validated(), evaluation)
            if last or stopping or step.number % settings.checkpoint_every == 0:
                folder.save_last(trainer.checkpoint())
            if stopping and not last:
                raise stop.stopped()
