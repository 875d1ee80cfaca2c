"""The outer loop."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm import tqdm

from maml_l2l.algorithms import backbone_arguments, build_learner
from maml_l2l.algorithms.meta_learner import Scores
from maml_l2l.checkpoint import Checkpoint
from maml_l2l.config import Experiment
from maml_l2l.data.images import LabelledImages
from maml_l2l.data.sources import class_split, load_data
from maml_l2l.data.splits import ClassSplit
from maml_l2l.device import choose_device
from maml_l2l.errors import UserError
from maml_l2l.evaluation import Evaluation, evaluate
from maml_l2l.run_folder import RunFolder, refuse_used_folder
from maml_l2l.tasks import task_stream

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
        self.training_tasks = task_stream(experiment, images, split, "train")
        self.validation_tasks = task_stream(experiment, images, split, "val")
        torch.manual_seed(experiment.run.seed)
        self.backbone = backbone_arguments(experiment.model, experiment.task.ways, images.pixels.shape[1])
        compile_ = experiment.run.compile
        if compile_ == "auto":
            compile_ = device.type == "cpu" and experiment.train.iterations >= _WORTH_COMPILING
        options = {"compile": compile_, "precision": experiment.run.precision}
        self.learner = build_learner(experiment.algorithm, self.backbone, **options).to(device)
        self.optimizer = torch.optim.Adam(self.learner.parameters(), lr=experiment.train.meta_lr)

    def iterations(self) -> Iterator[MetaIteration]:
        """The outer loop: after each yield, the weights have taken one more step of Adam along the meta-gradient.

        Raises `UserError`, before the weights change, where a loss or a meta-gradient is not finite.
        """
        settings = self.experiment.train
        for iteration in range(settings.iterations):
            meta_lr = self._set_meta_lr(iteration)
            tasks = self.training_tasks.batch(iteration * settings.meta_batch, settings.meta_batch).to(self.device)
            algorithm = self.experiment.algorithm
            scores = self.learner.meta_gradient(tasks, algorithm.inner_steps, algorithm.normalisation)
            self._check_finite(iteration, scores)
            self.optimizer.step()
            loss, accuracy = scores.losses.mean().item(), 100 * scores.accuracies.mean().item()
            yield MetaIteration(iteration + 1, loss, accuracy, meta_lr)

    def validate(self) -> Evaluation:
        """Scores on the fixed validation tasks, after as many inner steps and normalised as in training."""
        algorithm = self.experiment.algorithm
        return evaluate(
            self.learner,
            self.validation_tasks,
            tasks=self.experiment.train.validate_tasks,
            steps=[algorithm.inner_steps],
            device=self.device,
            normalisation=algorithm.normalisation,
        )

    def checkpoint(self, done: int, validation_accuracy: float | None, with_optimizer: bool) -> Checkpoint:
        """The state after `done` meta-iterations."""
        return Checkpoint(
            config=self.experiment.model_dump(),
            split=self.split,
            iteration=done,
            validation_accuracy=validation_accuracy,
            backbone=self.backbone,
            weights=self.learner.module.state_dict(),
            optimizer=self.optimizer.state_dict() if with_optimizer else None,
        )

    def _set_meta_lr(self, iteration: int) -> float:
        settings = self.experiment.train
        meta_lr = settings.meta_lr
        if settings.schedule == "cosine":
            meta_lr *= 0.5 * (1 + math.cos(math.pi * iteration / settings.iterations))
        self.optimizer.param_groups[0]["lr"] = meta_lr
        return meta_lr

    def _check_finite(self, iteration: int, scores: Scores) -> None:
        gradients = torch.stack([parameter.grad.sum() for parameter in self.learner.parameters()])
        if scores.losses.isfinite().all() and gradients.isfinite().all():
            return
        quantity = "meta-gradient" if scores.losses.isfinite().all() else "loss"
        first = iteration * self.experiment.train.meta_batch
        raise UserError(
            f"the {quantity} of meta-iteration {iteration + 1} is not finite (tasks {first} to "
            f"{first + len(scores.losses) - 1} of seed {self.experiment.run.seed}, split train). Its update was not "
            "applied, and the checkpoints written before it stay. Lower algorithm.inner_lr or train.meta_lr."
        )


def train(experiment: Experiment, run_dir: Path) -> None:
    """Meta-train as `experiment` says and leave everything in the folder `run_dir`; see `RunFolder`.

    Raises `UserError` where the data cannot serve the tasks, where `run_dir` already holds a run or cannot be written,
    and where a loss or meta-gradient is not finite.
    """
    device = choose_device(experiment.run)
    refuse_used_folder(run_dir)
    images = load_data(experiment.data)
    trainer = MetaTrainer(experiment, images, class_split(experiment.data, images), device)
    settings = experiment.train
    with RunFolder(run_dir, experiment) as folder:
        folder.save_last(trainer.checkpoint(0, None, with_optimizer=True))
        progress = tqdm(trainer.iterations(), run_dir.name, settings.iterations, unit="it", disable=None)
        validation_accuracy = None
        for step in progress:
            folder.log(step.number, loss=step.loss, accuracy=step.accuracy, meta_lr=step.meta_lr)
            rates = f"loss {step.loss:.3f}, accuracy {step.accuracy:.1f} %, meta_lr {step.meta_lr:.1e}"
            progress.set_postfix_str(rates, refresh=False)
            last = step.number == settings.iterations
            if last or step.number % settings.validate_every == 0:
                evaluation = trainer.validate()
                validation_accuracy = evaluation.mean()[0]
                folder.validated(trainer.checkpoint(step.number, validation_accuracy, with_optimizer=False), evaluation)
            if last or step.number % settings.checkpoint_every == 0:
                folder.save_last(trainer.checkpoint(step.number, validation_accuracy, with_optimizer=True))
