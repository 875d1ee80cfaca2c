"""The outer loop."""

from __future__ import annotations

import contextlib
import math
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm import tqdm

from maml_l2l.algorithms import backbone_arguments, build_learner
from maml_l2l.algorithms.scores import Evaluation
from maml_l2l.checkpoints.checkpoint import Checkpoint
from maml_l2l.config import Experiment
from maml_l2l.data.labelled_images import LabelledImages
from maml_l2l.data.sources import class_split, load_data
from maml_l2l.data.splits import ClassSplit
from maml_l2l.experiments.agreement import check_same_data, check_same_experiment
from maml_l2l.experiments.evaluation import evaluate
from maml_l2l.experiments.resuming import beginning, started_by
from maml_l2l.experiments.run_folder import NoRunFolder, RunFolder
from maml_l2l.system import distributed
from maml_l2l.system.device import computing, drawing_workers, find_device
from maml_l2l.system.errors import UserError, printable
from maml_l2l.system.interruption import StopRequests
from maml_l2l.tasks.batch import TaskBatch
from maml_l2l.tasks.stream import task_stream

_WORTH_COMPILING = 1000  # meta-iterations; compiling takes the time of some hundred


@dataclass(frozen=True)
class MetaIteration:
    """What one meta-iteration gave: its number from 1, mean query loss (nats), accuracy (%) and learning rate."""

    number: int
    loss: float
    accuracy: float
    meta_lr: float


class MetaTrainer:
    """A network, its optimizer and its tasks, as an experiment describes them (Finn et al., 2017, algorithm 2)."""

    def __init__(self, experiment: Experiment, images: LabelledImages, split: ClassSplit, device: torch.device):
        """Raises `UserError` where the images cannot serve the tasks."""
        self.experiment, self.split, self.device = experiment, split, device
        self.done, self.validation_accuracy, self.earlier_classes = 0, None, ()
        _check_processes(experiment.train.meta_batch)
        self.training_tasks = task_stream(experiment, images, split, "train", experiment.train.shift)
        self.validation_tasks = task_stream(experiment, images, split, "val")
        if split["test"]:
            task_stream(experiment, images, split, "test")  # refuses what could not be evaluated, now and not then
        torch.manual_seed(experiment.run.seed)
        self.backbone = backbone_arguments(experiment.model, experiment.task.ways, images.pixels.shape[1])
        compile_ = experiment.run.compile
        if compile_ == "auto":
            compile_ = device.type != "mps" and experiment.train.iterations >= _WORTH_COMPILING
        options = {"compile": compile_, "precision": experiment.run.precision}
        self.learner = build_learner(experiment.algorithm, self.backbone, **options).to(device)
        self.optimizer = torch.optim.Adam(self.learner.parameters(), lr=experiment.train.meta_lr)

    def iterations(self) -> Iterator[MetaIteration]:
        """The outer loop: after each yield, the weights have taken one more step of Adam along the meta-gradient.

        Raises `UserError`, before the weights change, where a loss or a meta-gradient is not finite.
        """
        settings = self.experiment.train
        first, count = distributed.share(settings.meta_batch)
        starts = range(
            self.done * settings.meta_batch + first, settings.iterations * settings.meta_batch, settings.meta_batch
        )
        workers = drawing_workers(self.experiment.run.workers, self.device)
        for tasks in self.training_tasks.batches(starts, count, self.device, workers):
            meta_lr = self._set_meta_lr(self.done)
            loss, accuracy = self._meta_gradient(tasks)
            self.optimizer.step()
            self.done += 1
            yield MetaIteration(self.done, loss, accuracy, meta_lr)

    def _meta_gradient(self, tasks: TaskBatch) -> tuple[float, float]:
        """Set the meta-gradient of the whole meta-batch, of which `tasks` are the share of this process.

        Returns mean loss (nats) and accuracy (percent) over the meta-batch.
        """
        settings, algorithm = self.experiment.train, self.experiment.algorithm
        parameters = list(self.learner.parameters())
        scores = self.learner.meta_gradient(tasks, algorithm.inner_steps, algorithm.normalisation)
        means = torch.stack([scores.losses.mean(), scores.accuracies.mean()])
        if distributed.processes() > 1:
            parts = [*(parameter.grad for parameter in parameters), means]
            torch._foreach_mul_(parts, len(tasks) / settings.meta_batch)
            distributed.sum_in_place(parts)
        loss, accuracy = means.tolist()
        self._check_finite(loss)
        if settings.max_grad_norm is not None:
            torch.nn.utils.clip_grad_norm_(parameters, settings.max_grad_norm)
        return loss, 100 * accuracy

    def validate(self) -> Evaluation:
        """Scores on the fixed validation tasks, after as many inner steps and normalised as in training."""
        algorithm = self.experiment.algorithm
        evaluation = evaluate(
            self.learner,
            self.validation_tasks,
            tasks=self.experiment.train.validate_tasks,
            steps=[algorithm.inner_steps],
            device=self.device,
            normalisation=algorithm.normalisation,
        )
        self.validation_accuracy = evaluation.mean()[0]
        return evaluation

    def checkpoint(self, with_optimizer: bool) -> Checkpoint:
        """The state after `done` meta-iterations, with the accuracy of the latest validation."""
        return Checkpoint(
            config=self.experiment.model_dump(),
            split=self.split,
            iteration=self.done,
            validation_accuracy=self.validation_accuracy,
            backbone=self.backbone,
            weights=self.learner.module.state_dict(),
            optimizer=self.optimizer.state_dict() if with_optimizer else None,
            inner_lrs=None if self.learner.inner_lrs is None else self.learner.inner_lrs.detach(),
            earlier_classes=self.earlier_classes,
        )

    def start_from(self, pretrained: Checkpoint) -> None:
        """Take the weights and step sizes of `pretrained`; see `Checkpoint.start` for what it refuses."""
        pretrained.start(self.learner, self.backbone, self.split)
        self.earlier_classes = pretrained.training_classes

    def restore(self, checkpoint: Checkpoint) -> None:
        """Go on from `checkpoint`, a `last.pth`. Raises `UserError` where the data's classes are not those it has."""
        if checkpoint.split != self.split:
            raise UserError(
                f"the classes of {self.experiment.data.root} are not those that the run was started with. "
                "Point data.root to the same data, or start another run with --run_dir."
            )
        self.done, self.validation_accuracy = checkpoint.iteration, checkpoint.validation_accuracy
        self.earlier_classes = checkpoint.earlier_classes
        checkpoint.restore(self.learner)
        self.optimizer.load_state_dict(checkpoint.optimizer)

    def _set_meta_lr(self, iteration: int) -> float:
        settings = self.experiment.train
        meta_lr = settings.meta_lr
        if settings.schedule == "cosine":
            meta_lr *= 0.5 * (1 + math.cos(math.pi * iteration / settings.iterations))
        self.optimizer.param_groups[0]["lr"] = meta_lr
        return meta_lr

    def _check_finite(self, loss: float) -> None:
        gradients = torch.stack([parameter.grad.sum() for parameter in self.learner.parameters()])
        if math.isfinite(loss) and gradients.isfinite().all():
            return
        quantity = "meta-gradient" if math.isfinite(loss) else "loss"
        tasks = self.experiment.train.meta_batch
        raise UserError(
            f"the {quantity} of meta-iteration {self.done + 1} is not finite (tasks {self.done * tasks} to "
            f"{(self.done + 1) * tasks - 1} of seed {self.experiment.run.seed}, split train). Its update was not "
            "applied, and the checkpoints written before it stay. Lower algorithm.inner_lr or train.meta_lr."
        )


def _check_processes(meta_batch: int) -> None:
    if distributed.processes() > meta_batch:
        raise UserError(
            f"train.meta_batch is {meta_batch}, which {distributed.processes()} processes cannot share. "
            f"Start {meta_batch} at most, or raise train.meta_batch."
        )


def train(experiment: Experiment, run_dir: Path, save_to: Path | None = None, resume: bool = False) -> None:
    """Meta-train as `experiment` says and leave everything in the folder `run_dir`; see `RunFolder`.

    save_to: a second path for the best checkpoint.  resume: go on with the run that `run_dir` holds; so it is when
    torchrun starts again, after a process died, what it had started.
    Raises `UserError` where the data cannot serve the tasks, where `run_dir` already holds a run (resume: holds none,
    or one of another config), where it or `save_to` cannot be written, and where a loss or meta-gradient is not finite.
    Raises `Stopped` after SIGINT, SIGTERM or SIGHUP, with everything saved.
    """
    run = experiment.run
    device = find_device(run.device)
    with (
        computing(device, run.threads, run.precision),
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
            if saved is not None:
                trainer.restore(saved)
            elif pretrained is not None:
                trainer.start_from(pretrained)
        check_same_data(images, trainer.split)
        folder: RunFolder | NoRunFolder = NoRunFolder()
        with distributed.together():
            if distributed.rank() == 0:
                folder = stack.enter_context(RunFolder(run_dir, experiment, saved, save_to))
                if saved is None:
                    folder.save_last(trainer.checkpoint(with_optimizer=True))
                else:
                    tqdm.write(f"resuming {printable(str(run_dir))} after {trainer.done} meta-iterations")
        _run(trainer, folder, printable(run_dir.name), _resume_command(run_dir, save_to))


def _resume_command(run_dir: Path, save_to: Path | None) -> str:
    options = ["--resume", str(run_dir), *(["--save_to", str(save_to)] if save_to is not None else [])]
    return f"python -m maml_l2l.train {shlex.join(options)}"


def _run(trainer: MetaTrainer, folder: RunFolder | NoRunFolder, name: str, resume_command: str) -> None:
    """The outer loop to its end or to a signal; validates, logs and saves on the way, and first what it starts from."""
    settings = trainer.experiment.train
    shown = {"unit": "it", "initial": trainer.done, "disable": None if distributed.rank() == 0 else True}
    if trainer.done == 0 and trainer.experiment.model.pretrained is not None:
        evaluation = trainer.validate()
        folder.validated(trainer.checkpoint(with_optimizer=False), evaluation)
    with StopRequests(f"{resume_command} goes on where it stopped.") as stop:
        progress = tqdm(trainer.iterations(), name, settings.iterations, **shown)
        for step in progress:
            stop.at_once = False
            folder.log(step.number, loss=step.loss, accuracy=step.accuracy, meta_lr=step.meta_lr)
            rates = f"loss {step.loss:.3f}, accuracy {step.accuracy:.1f} %, meta_lr {step.meta_lr:.1e}"
            progress.set_postfix_str(rates, refresh=False)
            last = step.number == settings.iterations
            stopping = distributed.any_process(stop.signal_number is not None, trainer.device)
            if last or step.number % settings.validate_every == 0:
                evaluation = trainer.validate()
                folder.validated(trainer.checkpoint(with_optimizer=False), evaluation)
            if last or stopping or step.number % settings.checkpoint_every == 0:
                folder.save_last(trainer.checkpoint(with_optimizer=True))
            if stopping and not last:
                raise stop.stopped()
