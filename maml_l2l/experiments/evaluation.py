"""The protocol: accuracy on many tasks of one split, with its interval, after every number of inner steps."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path

import torch

from maml_l2l.algorithms.features import head_learner
from maml_l2l.algorithms.meta_learner import MetaLearner
from maml_l2l.algorithms.scores import Evaluation, Scores
from maml_l2l.algorithms.vectorized import VectorizedMAML
from maml_l2l.backbones import use_backbone
from maml_l2l.checkpoints.checkpoint import Checkpoint, load_pretrained
from maml_l2l.config import Experiment, find_protocol, under_protocol
from maml_l2l.data.class_folders import NoPictures
from maml_l2l.data.labelled_images import LabelledImages
from maml_l2l.data.sources import class_split, load_data
from maml_l2l.data.splits import SPLITS, origins, unseen_classes
from maml_l2l.experiments.agreement import check_same_data, check_same_experiment
from maml_l2l.experiments.ensemble import Ensemble, check_fits
from maml_l2l.experiments.feature_tasks import FeatureTasks
from maml_l2l.experiments.fitting import check_changes, check_images
from maml_l2l.experiments.worth_compiling import evaluation_compiles
from maml_l2l.system import distributed
from maml_l2l.system.device import computing, find_device
from maml_l2l.system.errors import UserError
from maml_l2l.system.messages import progress_bar, progress_bars
from maml_l2l.tasks.protocols import STREAMS
from maml_l2l.tasks.stream import TaskStream, task_stream

_log = logging.getLogger(__name__)

_TASKS_AT_ONCE = 50


@torch.no_grad()
def evaluate_learner(
    learner: MetaLearner | Ensemble,
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
    source: TaskStream | FeatureTasks = stream
    adapting: MetaLearner | Ensemble = learner
    if not stream.changes_images and isinstance(learner, MetaLearner) and (head := head_learner(learner)) is not None:
        source, adapting = FeatureTasks(learner.module, stream, device), head
    shown = progress_bars(progress and distributed.rank() == 0)
    with shown, progress_bar(total=tasks, unit="task", description="evaluation") as bar:
        for start in starts[distributed.rank() :: distributed.processes()]:
            batch = source.batch(start, min(_TASKS_AT_ONCE, tasks - start)).to(device)
            logits = [adapting.adapt_and_score(chunk, steps, normalisation) for chunk in adapting.chunks(batch)]
            scores = [learner.score(outputs, batch.query_labels) for outputs in torch.cat(logits, dim=1)]
            parts.append(Scores(*(torch.stack(part).cpu().double() for part in zip(*scores, strict=True))))
            bar.update(len(batch) * distributed.processes())
    learner.train(training)
    shares = distributed.from_all(parts, patient=True)  # some have a batch more than others
    parts = [shares[number % len(shares)][number // len(shares)] for number in range(len(starts))]
    losses, accuracies = (torch.cat(column, dim=1) for column in zip(*parts, strict=True))
    return Evaluation(tuple(steps), losses, 100 * accuracies)


def evaluate(
    checkpoint: Checkpoint | str | Path,
    experiment: Experiment | None = None,
    split: str = "test",
    *,
    protocol: str | None = None,
    ensemble: Sequence[Checkpoint | str | Path] = (),
    progress: bool = False,
) -> Evaluation:
    """Accuracy of `checkpoint`, or of the one of that path or name, on tasks of unseen classes, with its interval.

    experiment: data, task sizes, steps and normalisation; None: those of the checkpoint, on this machine's device.
    split: which of the checkpoint's own classes: `train`, `val` or `test`. Data that share no class with its split are
    evaluated whole, which is said.  progress: show bars on a terminal.
    protocol: a name in `maml_l2l.config.PROTOCOLS`, which says what tasks are drawn from, and where `experiment` is
    None their size and number, too.  ensemble: further networks, whose outputs are averaged with this one's.

    Raises `UserError` where there is no such checkpoint or split, where `experiment` changes a key that has no effect
    here, where the head has fewer outputs than `task.ways`, where the data do not hold the classes or have images of
    another size, or where a network of `ensemble` does not fit the others.

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
        experiment = under_protocol(on_this_machine(checkpoint.experiment), protocol, {}, "the checkpoint")
    networks = [checkpoint]
    for number, other in enumerate(ensemble, start=2):
        networks.append(other if isinstance(other, Checkpoint) else load_pretrained(other))
        name = f"network {number} of the ensemble" if isinstance(other, Checkpoint) else str(other)
        check_fits(checkpoint, networks[-1], name, experiment.task.ways)
    return _evaluate(networks, experiment, split, protocol, progress)


def on_this_machine(trained: Experiment) -> Experiment:
    """`trained` with the device, the threads and the engine of this machine, as another one may have trained it."""
    compile_ = trained.run.compile and "auto"  # what was worth it for the training need not be for less
    run = trained.run.model_copy(update={"device": "auto", "threads": None, "compile": compile_})
    return trained.model_copy(update={"run": run, "algorithm": trained.algorithm.by_any_engine()})


def _evaluate(
    networks: Sequence[Checkpoint], experiment: Experiment, split: str, protocol: str | None, progress: bool
) -> Evaluation:
    check_changes(networks[0].experiment, experiment)
    networks[0].check_ways(experiment.task.ways)
    run = experiment.run
    device = find_device(run.device)
    with progress_bars(progress), computing(device, run.threads, run.precision), distributed.process_group(device):
        check_same_experiment(experiment)
        images = distributed.one_a_machine_first(lambda: _images(networks[0], experiment))
        with distributed.together():
            stream = _stream(networks, experiment, images, split, protocol)
        tensors = {f"{number}.{name}": one for number, n in enumerate(networks) for name, one in n.tensors.items()}
        check_same_data(images, networks[0].split | {"evaluated": stream.class_names}, tensors)
        image = images.pixels.shape[1:]
        learners = [_learner(network, experiment, image, device) for network in networks]
        evaluation = evaluate_learner(
            learners[0] if len(learners) == 1 else Ensemble(learners),
            stream,
            tasks=experiment.eval.tasks,
            steps=range(experiment.eval.steps + 1),
            device=device,
            normalisation=experiment.algorithm.normalisation,
            progress=progress,
        )
    seen = {name for network in networks for name in network.training_classes}.intersection(stream.class_names)
    return dataclasses.replace(evaluation, classes=len(stream.class_names), seen_classes=len(seen))


def _learner(network: Checkpoint, experiment: Experiment, image: torch.Size, device: torch.device) -> MetaLearner:
    """The learner of `network` on `device`, with the engine that `experiment` names, or with what is fastest."""
    trained = network.experiment.algorithm
    engine = "auto" if trained.gradient == "implicit" else experiment.algorithm.engine  # its pull is not the loop's
    compile_ = evaluation_compiles(network, experiment, image, device)
    own = {"engine": "vectorized" if compile_ else engine, "task_chunk": experiment.algorithm.task_chunk}
    learner = network.learner(trained.model_copy(update=own), device)
    if compile_ and isinstance(learner, VectorizedMAML):
        learner.compiled = True
    return learner


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


def _stream(
    networks: Sequence[Checkpoint], experiment: Experiment, images: LabelledImages, split: str, protocol: str | None
) -> TaskStream:
    if split not in SPLITS:
        raise UserError(f"there is no split {split}. Name one of {', '.join(SPLITS)}.")
    check_images(networks, images)
    drawn = "together" if protocol is None else find_protocol(protocol).classes
    if drawn == "rotated" and not experiment.data.rotate:
        drawn = "together"
    if drawn == "alphabet" and experiment.data.name == "folder":
        raise UserError(
            f"the protocol {protocol} asks who drew each picture, which a folder does not say. Evaluate on omniglot, "
            "glyphs or drawings (data.name), or use another protocol."
        )
    if drawn == "alphabet" and split == "test":
        classes = class_split(experiment.data.model_copy(update={"split": "alphabets"}), images)["test"]
    else:
        classes = _unseen(networks, experiment, images, split)
    return task_stream(experiment, images, {split: classes}, split, kind=STREAMS[drawn])


def _unseen(networks: Sequence[Checkpoint], experiment: Experiment, images: LabelledImages, split: str) -> list[str]:
    """The classes of `split` of the networks, or those of other data that never trained them, which is said."""
    first, earlier = networks[0], [name for network in networks for name in network.earlier_classes]
    classes = unseen_classes(first.split, split, images.class_names, earlier)
    renamed = classes != first.split[split] and origins(classes, first.split[split])
    if renamed and distributed.rank() == 0:
        new, old = next(iter(renamed.items()))
        _log.info(
            f"{experiment.data.root} holds the checkpoint's classes under other names, {new} for {old}: the "
            f"{len(classes)} {split} classes among them are evaluated"
        )
    elif classes != first.split[split] and distributed.rank() == 0:
        total = len(images.class_names)
        which = f"all {total}" if len(classes) == total else f"the {len(classes)} of {total} that never trained it"
        _log.info(f"{experiment.data.root} holds no class of the checkpoint's split: {which} are evaluated")
    return classes
