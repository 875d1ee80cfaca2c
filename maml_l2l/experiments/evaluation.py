"""The protocol: accuracy on many tasks of one split, with its interval, after every number of inner steps."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import torch

from maml_l2l.algorithms.features import head_learner
from maml_l2l.algorithms.meta_learner import MetaLearner
from maml_l2l.algorithms.scores import Evaluation, Scores
from maml_l2l.backbones import use_backbone
from maml_l2l.checkpoints.checkpoint import Checkpoint, load_pretrained
from maml_l2l.config import Experiment, changed_keys
from maml_l2l.data.class_folders import NoPictures
from maml_l2l.data.labelled_images import LabelledImages
from maml_l2l.data.sources import load_data
from maml_l2l.data.splits import SPLITS, origins, unseen_classes
from maml_l2l.experiments.agreement import check_same_data, check_same_experiment
from maml_l2l.experiments.feature_tasks import FeatureTasks
from maml_l2l.system import distributed
from maml_l2l.system.device import computing, find_device
from maml_l2l.system.errors import UserError
from maml_l2l.system.messages import progress_bar, progress_bars
from maml_l2l.tasks.stream import TaskStream, task_stream

_log = logging.getLogger(__name__)

_TASKS_AT_ONCE = 50

# Keys that an evaluation takes from its own config; the others are the checkpoint's, which they have made.
_OWN_SECTIONS = ("data", "task", "eval")
_OWN = (
    *("algorithm.engine", "algorithm.task_chunk", "algorithm.normalisation"),
    *("run.seed", "run.device", "run.threads", "run.compile"),  # the last must be given up for the loop
)
_SPLIT_ONCE = ("data.split", "data.val_fraction", "data.test_fraction", "data.split_seed")


@torch.no_grad()
def evaluate_learner(
    learner: MetaLearner,
    stream: TaskStream,
    *,
    tasks: int,
    steps: Sequence[int],
    device: torch.device,
    normalisation: str = "batch",
    progress: bool = False,
) -> Evaluation:
    """Adapt to the first `tasks` tasks of `stream`; score their queries after each number of inner steps in `steps`.

    Several processes share out the tasks; each returns the scores of all.
    """
    parts: list[Scores] = []
    starts = range(0, tasks, _TASKS_AT_ONCE)
    training = learner.training
    learner.eval()  # no dropout
    head = None if stream.changes_images else head_learner(learner)
    source = stream if head is None else FeatureTasks(learner.module, stream, device)
    adapting = head or learner
    shown = progress_bars(progress and distributed.rank() == 0)
    with shown, progress_bar(total=tasks, unit="task", description="evaluation") as bar:
        for start in starts[distributed.rank() :: distributed.processes()]:
            batch = source.batch(start, min(_TASKS_AT_ONCE, tasks - start)).to(device)
            logits = [adapting.adapt_and_score(chunk, steps, normalisation) for chunk in adapting.chunks(batch)]
            labels = batch.query_labels.expand(len(steps), -1, -1)
            parts.append(Scores(*(part.cpu().double() for part in learner.score(torch.cat(logits, dim=1), labels))))
            bar.update(len(batch) * distributed.processes())
    learner.train(training)
    shares = distributed.from_all(parts)
    parts = [shares[number % len(shares)][number // len(shares)] for number in range(len(starts))]
    losses, accuracies = (torch.cat(column, dim=1) for column in zip(*parts, strict=True))
    return Evaluation(tuple(steps), losses, 100 * accuracies)


def evaluate(
    checkpoint: Checkpoint | str | Path,
    experiment: Experiment | None = None,
    split: str = "test",
    *,
    progress: bool = False,
) -> Evaluation:
    """Accuracy of `checkpoint`, or of the one of that path or name, on tasks of unseen classes, with its interval.

    experiment: data, task sizes, steps and normalisation; None: those of the checkpoint, on this machine's device.
    split: which of the checkpoint's own classes: `train`, `val` or `test`. Data that share no class with its split are
    evaluated whole, which is said.  progress: show bars on a terminal.

    Raises `UserError` where there is no such checkpoint or split, where `experiment` changes a key that has no effect
    here, where the head has fewer outputs than `task.ways`, or where the data do not hold the classes or have images of
    another size.

    >>> import maml_l2l
    >>> checkpoint = maml_l2l.load_checkpoint("runs/glyphs/best.pth")
    >>> evaluation = maml_l2l.evaluate(checkpoint, split="val")
    >>> evaluation.steps, evaluation.accuracies.shape  # (inner steps, tasks)
    ((0, 1, 2), torch.Size([3, 10]))
    >>> for steps, mean, ci95 in zip(evaluation.steps, evaluation.mean(), evaluation.ci95()):
    ...     print(f"{steps} steps: {mean:.1f} ± {ci95:.1f} %")  # doctest: +ELLIPSIS
    0 steps: ... %
    1 steps: ... %
    2 steps: ... %
    """
    if experiment is not None:
        use_backbone(experiment.model.name)
    if not isinstance(checkpoint, Checkpoint):
        checkpoint = load_pretrained(checkpoint)
    if experiment is None:
        experiment = on_this_machine(checkpoint.experiment)
    return _evaluate(checkpoint, experiment, split, progress)


def on_this_machine(trained: Experiment) -> Experiment:
    """`trained` with the device and the threads of this machine, as another one may have trained it."""
    return trained.model_copy(update={"run": trained.run.model_copy(update={"device": "auto", "threads": None})})


def _evaluate(checkpoint: Checkpoint, experiment: Experiment, split: str, progress: bool) -> Evaluation:
    _check_changes(checkpoint.experiment, experiment)
    checkpoint.check_ways(experiment.task.ways)
    run = experiment.run
    device = find_device(run.device)
    with progress_bars(progress), computing(device, run.threads, run.precision), distributed.process_group(device):
        check_same_experiment(experiment)
        images = distributed.one_a_machine_first(lambda: _images(checkpoint, experiment))
        with distributed.together():
            stream = _stream(checkpoint, experiment, images, split)
        check_same_data(images, checkpoint.split | {"evaluated": [split]}, checkpoint.tensors)
        learner = checkpoint.learner(experiment.algorithm).to(device)
        return evaluate_learner(
            learner,
            stream,
            tasks=experiment.eval.tasks,
            steps=range(experiment.eval.steps + 1),
            device=device,
            normalisation=experiment.algorithm.normalisation,
            progress=progress,
        )


def _images(checkpoint: Checkpoint, experiment: Experiment) -> LabelledImages:
    try:
        return load_data(experiment.data)
    except NoPictures as error:
        if experiment.data.root != checkpoint.experiment.data.root:
            raise
        raise UserError(
            f"{error} This is the path that the checkpoint was trained with, seen from the working folder: name the "
            "data with --path (data.root)."
        ) from None


def _check_changes(trained: Experiment, wanted: Experiment) -> None:
    for key, (old, new) in changed_keys(trained, wanted).items():
        own = key in _OWN or (key.partition(".")[0] in _OWN_SECTIONS and key not in _SPLIT_ONCE)
        if not own:
            raise UserError(
                f"the checkpoint was trained with `{key}` {old!r}, which an evaluation cannot change, found {new!r}. "
                "Leave it out, or train with it."
            )


def _stream(checkpoint: Checkpoint, experiment: Experiment, images: LabelledImages, split: str) -> TaskStream:
    if split not in SPLITS:
        raise UserError(f"there is no split {split}. Name one of {', '.join(SPLITS)}.")
    found = {"channels": images.pixels.shape[1], "image_size": images.pixels.shape[-1]}
    for key, value in found.items():
        trained = checkpoint.backbone.get(key, value)  # a network that does not ask for it takes any
        if trained != value:
            raise UserError(
                f"the checkpoint's network takes images of {key} {trained}, the data have {value}. "
                f"Set data.{key}={trained}."
            )
    classes = unseen_classes(checkpoint.split, split, images.class_names, checkpoint.earlier_classes)
    renamed = classes != checkpoint.split[split] and origins(classes, checkpoint.split[split])
    if renamed and distributed.rank() == 0:
        new, old = next(iter(renamed.items()))
        _log.info(
            f"{experiment.data.root} holds the checkpoint's classes under other names, {new} for {old}: the "
            f"{len(classes)} {split} classes among them are evaluated"
        )
    elif classes != checkpoint.split[split] and distributed.rank() == 0:
        total = len(images.class_names)
        which = f"all {total}" if len(classes) == total else f"the {len(classes)} of {total} that never trained it"
        _log.info(f"{experiment.data.root} holds no class of the checkpoint's split: {which} are evaluated")
    return task_stream(experiment, images, {split: classes}, split)
