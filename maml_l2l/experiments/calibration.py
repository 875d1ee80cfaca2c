"""Probabilities that mean something: one temperature for a network's outputs, learned on validation tasks."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch

from maml_l2l.algorithms.calibration import Calibration, calibration_error, fitted_temperature
from maml_l2l.checkpoints.checkpoint import Checkpoint
from maml_l2l.config import Experiment, with_overrides
from maml_l2l.data.labelled_images import LabelledImages
from maml_l2l.data.sources import load_data
from maml_l2l.data.splits import unseen_classes
from maml_l2l.experiments.fitting import check_changes, check_images
from maml_l2l.system.device import computing, find_device
from maml_l2l.system.errors import UserError
from maml_l2l.system.messages import progress_bar, progress_bars
from maml_l2l.tasks.stream import task_stream

WAYS = (2, 5, 10, 20)


def calibrated(
    checkpoint: Checkpoint,
    experiment: Experiment,
    *,
    tasks: int = 200,
    ways: Sequence[int] = WAYS,
    progress: bool = False,
) -> tuple[Checkpoint, list[Calibration]]:
    """`checkpoint` with the temperature that suits its validation classes, and the calibration error it had and has.

    The outputs of the adapted network are divided by the temperature, which leaves every answer as it is. It makes the
    mean cross-entropy least over the queries of `tasks` tasks of each of `ways` that network and classes have, scored
    as predictions are, by the statistics of the support (Guo et al., 2017). before, after: `calibration_error`.
    Raises `UserError` where there are no such tasks, where `experiment` changes what the training has decided, and
    where the images are not those of the network.
    """
    run = experiment.run
    check_changes(checkpoint.experiment, experiment)
    device = find_device(run.device)
    with progress_bars(progress), computing(device, run.threads, run.precision):
        images = load_data(experiment.data)
        check_images([checkpoint], images)
        found = {}
        for count in _possible_ways(checkpoint, images, ways):
            sized = with_overrides(experiment, {"task.ways": count}, "the calibration")
            found[count] = _outputs(checkpoint, sized, images, tasks, device)
    temperature = fitted_temperature(list(found.values()))
    rows = []
    for count, (logits, labels) in found.items():
        divisors = checkpoint.temperature, temperature
        errors = (100 * calibration_error((logits / divisor).softmax(1), labels) for divisor in divisors)
        rows.append(Calibration(count, 100 * (logits.argmax(1) == labels).double().mean().item(), *errors))
    return dataclasses.replace(checkpoint, temperature=temperature), rows


def _possible_ways(checkpoint: Checkpoint, images: LabelledImages, ways: Sequence[int]) -> list[int]:
    classes = len(unseen_classes(checkpoint.split, "val", images.class_names, checkpoint.earlier_classes))
    possible = [count for count in ways if count <= classes and checkpoint.serves(count)]
    if not possible:
        raise UserError(
            f"there are no tasks to calibrate on: the network serves none of {', '.join(map(str, ways))} classes, or "
            f"there are only {classes} validation classes."
        )
    return possible


@torch.no_grad()
def _outputs(
    checkpoint: Checkpoint, experiment: Experiment, images: LabelledImages, tasks: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits (N, ways) and labels (N,) of the queries of so many validation tasks."""
    classes = unseen_classes(checkpoint.split, "val", images.class_names, checkpoint.earlier_classes)
    stream = task_stream(experiment, images, {"val": classes}, "val")
    learner, steps = checkpoint.learner(experiment.algorithm, device), experiment.algorithm.inner_steps
    logits, labels = [], []
    for start in progress_bar(range(tasks), f"{experiment.task.ways} ways", unit="task"):
        batch = stream.batch(start, 1).to(device)
        logits.append(learner.adapt_and_score(batch, [steps], "support")[0, 0].cpu())
        labels.append(batch.query_labels[0].cpu())
    return torch.cat(logits), torch.cat(labels)
