"""A network, its optimizer and its tasks: one meta-iteration after another."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import math
import random
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from maml_l2l.algorithms import build_learner
from maml_l2l.algorithms.scores import Evaluation
from maml_l2l.backbones import LibraryNetwork, backbone_arguments
from maml_l2l.checkpoints.checkpoint import Checkpoint
from maml_l2l.config import Experiment
from maml_l2l.data.labelled_images import LabelledImages
from maml_l2l.data.splits import ClassSplit
from maml_l2l.experiments.averaging import WeightAverage
from maml_l2l.experiments.evaluation import evaluate_learner
from maml_l2l.experiments.worth_compiling import training_compiles, training_precision
from maml_l2l.system import distributed
from maml_l2l.system.device import drawing_workers, seeded
from maml_l2l.system.errors import UserError
from maml_l2l.tasks.batch import TaskBatch
from maml_l2l.tasks.stream import task_stream

_log = logging.getLogger(__name__)


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
        self.done = 0
        self.validation_accuracy: float | None = None
        self.earlier_classes: tuple[str, ...] = ()
        _check_processes(experiment.train.meta_batch)
        shift, augment = experiment.train.shift, experiment.train.augment
        self.training_tasks = task_stream(experiment, images, split, "train", shift=shift, augment=augment)
        self.validation_tasks = task_stream(experiment, images, split, "val")
        if split["test"]:
            task_stream(experiment, images, split, "test")  # refuses what could not be evaluated, now and not then
        channels, image_size = images.pixels.shape[1], images.pixels.shape[-1]
        self.backbone = backbone_arguments(experiment.model, experiment.task.ways, channels, image_size)
        compile_, precision = training_compiles(experiment, device), training_precision(experiment, device)
        if experiment.run.precision == "auto" and distributed.rank() == 0:
            _log.info(f"run.precision: auto takes {precision}")
        with seeded(experiment.run.seed, device):
            self.learner = build_learner(experiment.algorithm, self.backbone, compile_, precision, device).to(device)
        self.optimizer = torch.optim.Adam(self.learner.parameters(), lr=experiment.train.meta_lr)
        decay = experiment.train.ema
        self.average = None if decay is None else WeightAverage(self.learner, decay)

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
            self.anneal()
            with seeded(self._seed(), self.device):  # dropout, so that a resumed run draws what this one would have
                loss, accuracy = self._meta_gradient(tasks)
            self.optimizer.step()
            if self.average is not None:
                self.average.update()
            self.done += 1
            yield MetaIteration(self.done, loss, accuracy, meta_lr)

    def _meta_gradient(self, tasks: TaskBatch) -> tuple[float, float]:
        """Set the meta-gradient of the whole meta-batch, of which `tasks` are the share of this process.

        Returns mean loss (nats) and accuracy (percent) over the meta-batch.
        """
        settings, algorithm = self.experiment.train, self.experiment.algorithm
        parameters = [parameter for parameter in self.learner.parameters() if parameter.requires_grad]
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

    def _seed(self) -> int:
        """Of what the networks of this process draw in the meta-iteration to come."""
        return random.Random(f"{self.experiment.run.seed}/{self.done}/{distributed.rank()}").getrandbits(63)

    def validate(self) -> Evaluation:
        """Scores on the fixed validation tasks, after as many inner steps and normalised as in training.

        Where weights are averaged along training, of the averages.
        """
        algorithm = self.experiment.algorithm
        with self._averaged():
            evaluation = evaluate_learner(
                self.learner,
                self.validation_tasks,
                tasks=self.experiment.train.validate_tasks,
                steps=[algorithm.inner_steps],
                device=self.device,
                normalisation=algorithm.normalisation,
            )
        self.validation_accuracy = evaluation.mean()[0]
        return evaluation

    def validated(self) -> Checkpoint:
        """The network that `validate` scores, and its accuracy then: a `best.pth`."""
        with self._averaged():
            return self._checkpoint()

    def checkpoint(self) -> Checkpoint:
        """All that the run goes on from after `done` meta-iterations: a `last.pth`."""
        average = None if self.average is None else self.average.tensors()
        return dataclasses.replace(self._checkpoint(), optimizer=self.optimizer.state_dict(), averaged=average)

    def _checkpoint(self) -> Checkpoint:
        learner = self.learner
        return Checkpoint(
            config=self.experiment.model_dump(),
            split=self.split,
            iteration=self.done,
            validation_accuracy=self.validation_accuracy,
            backbone=self.backbone,
            weights=_copied(learner.module.state_dict()),
            optimizer=None,
            inner_lrs=None if learner.inner_lrs is None else learner.inner_lrs.detach().clone(),
            transform=None if learner.transform is None else _copied(learner.transform.state_dict()),
            norms=None if learner.norms is None else _copied(learner.norms.named_rows()),
            earlier_classes=self.earlier_classes,
        )

    def _averaged(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext() if self.average is None else self.average.in_use()

    def start_from(self, pretrained: Checkpoint) -> None:
        """Take the weights and step sizes of `pretrained`; see `Checkpoint.start` for what it refuses."""
        pretrained.start(self.learner, self.backbone, self.split, self.experiment.algorithm)
        self.earlier_classes = pretrained.training_classes

    def take_library_weights(self) -> None:
        """Start from `model.weights`, where the network is one of timm or torchvision. Raises as its `take_weights`."""
        weights, network = self.experiment.model.weights, self.learner.module
        if isinstance(network, LibraryNetwork) and weights not in (None, "none"):
            network.take_weights(weights)

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
        if self.average is not None and checkpoint.averaged is not None:
            self.average.restore(checkpoint.averaged, self.done)
        if checkpoint.optimizer is not None:
            self.optimizer.load_state_dict(checkpoint.optimizer)

    def _set_meta_lr(self, iteration: int) -> float:
        settings = self.experiment.train
        meta_lr = settings.meta_lr
        if settings.schedule == "cosine":
            meta_lr *= 0.5 * (1 + math.cos(math.pi * iteration / settings.iterations))
        self.optimizer.param_groups[0]["lr"] = meta_lr
        return meta_lr

    def anneal(self) -> None:
        """Set what of the algorithm changes along training, for the meta-iteration to come."""
        algorithm = self.experiment.algorithm
        if algorithm.second_order_from is not None:
            self.learner.first_order = self.done < algorithm.second_order_from
        if algorithm.multi_step_loss is not None:
            self.learner.step_weights = step_weights(algorithm.inner_steps, self.done / algorithm.multi_step_loss)

    def _check_finite(self, loss: float) -> None:
        gradients = torch.stack([p.grad.sum() for p in self.learner.parameters() if p.requires_grad])
        if math.isfinite(loss) and gradients.isfinite().all():
            return
        quantity = "meta-gradient" if math.isfinite(loss) else "loss"
        tasks = self.experiment.train.meta_batch
        raise UserError(
            f"the {quantity} of meta-iteration {self.done + 1} is not finite (tasks {self.done * tasks} to "
            f"{(self.done + 1) * tasks - 1} of seed {self.experiment.run.seed}, split train). Its update was not "
            "applied, and the checkpoints written before it stay. Lower algorithm.inner_lr or train.meta_lr."
        )


def step_weights(steps: int, faded: float) -> list[float] | None:
    """Weights of the query losses after each inner step: MAML++'s, where `faded` of the way to the last alone is gone.

    All start as 1 / steps. Those before the last fall to 3 % of that, and the last has the rest. From `faded` = 1 on it
    is alone: None (Antoniou et al., 2019, section 4; the figures are those of their code).
    """
    if faded >= 1:
        return None
    others = max(1 - faded, 0.03) / steps
    return [*[others] * (steps - 1), 1 - others * (steps - 1)]


def _copied(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


def _check_processes(meta_batch: int) -> None:
    if distributed.processes() > meta_batch:
        raise UserError(
            f"train.meta_batch is {meta_batch}, which {distributed.processes()} processes cannot share. "
            f"Start {meta_batch} at most, or raise train.meta_batch."
        )
