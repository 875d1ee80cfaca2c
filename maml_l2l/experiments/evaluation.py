"""The protocol: accuracy on many tasks of one split, with its interval, after every number of inner steps."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from tqdm import tqdm

from maml_l2l.algorithms.meta_learner import MetaLearner
from maml_l2l.algorithms.scores import Evaluation, Scores, score
from maml_l2l.checkpoints.checkpoint import Checkpoint
from maml_l2l.config import Experiment, changed_keys
from maml_l2l.data.labelled_images import LabelledImages
from maml_l2l.data.sources import load_data
from maml_l2l.data.splits import unseen_classes
from maml_l2l.experiments.agreement import check_same_data, check_same_experiment
from maml_l2l.system import distributed
from maml_l2l.system.device import computing, find_device
from maml_l2l.system.errors import UserError, printable
from maml_l2l.tasks.stream import TaskStream, task_stream

_TASKS_AT_ONCE = 50

# Keys that an evaluation takes from its own config; the others are the checkpoint's, which they have made.
_OWN_SECTIONS = ("data", "task", "eval")
_OWN = (
    *("algorithm.engine", "algorithm.task_chunk", "algorithm.normalisation"),
    *("run.seed", "run.device", "run.threads", "run.compile"),  # the last must be given up for the loop
)
_SPLIT_ONCE = ("data.split", "data.val_fraction", "data.test_fraction", "data.split_seed")


@torch.no_grad()
def evaluate(
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
    hidden = None if progress and distributed.rank() == 0 else True
    with tqdm(total=tasks, unit="task", desc="evaluation", disable=hidden) as bar:
        for start in starts[distributed.rank() :: distributed.processes()]:
            batch = stream.batch(start, min(_TASKS_AT_ONCE, tasks - start)).to(device)
            logits = [learner.adapt_and_score(chunk, steps, normalisation) for chunk in learner.chunks(batch)]
            labels = batch.query_labels.expand(len(steps), -1, -1)
            parts.append(Scores(*(part.cpu().double() for part in score(torch.cat(logits, dim=1), labels))))
            bar.update(len(batch) * distributed.processes())
    shares = distributed.from_all(parts)
    parts = [shares[number % len(shares)][number // len(shares)] for number in range(len(starts))]
    losses, accuracies = (torch.cat(column, dim=1) for column in zip(*parts, strict=True))
    return Evaluation(tuple(steps), losses, 100 * accuracies)


def evaluate_checkpoint(checkpoint: Checkpoint, experiment: Experiment, split: str) -> Evaluation:
    """Evaluate `checkpoint` on its own `split`, with the data, task sizes, steps and normalisation of `experiment`.

    Data that share no class with the checkpoint's split are evaluated whole, which is said. Raises `UserError` where
    `experiment` changes a key that has no effect here, where the head has fewer outputs than `task.ways`, or where the
    data do not hold the classes or have other channels.
    """
    _check_changes(checkpoint.experiment, experiment)
    checkpoint.check_ways(experiment.task.ways)
    run = experiment.run
    device = find_device(run.device)
    with computing(device, run.threads, run.precision), distributed.process_group(device):
        check_same_experiment(experiment)
        images = distributed.one_a_machine_first(lambda: load_data(experiment.data))
        with distributed.together():
            stream = _stream(checkpoint, experiment, images, split)
        check_same_data(images, checkpoint.split | {"evaluated": [split]}, checkpoint.weights)
        steps = range(experiment.eval.steps + 1)
        learner = checkpoint.learner(experiment.algorithm).to(device)
        return evaluate(
            learner,
            stream,
            tasks=experiment.eval.tasks,
            steps=steps,
            device=device,
            normalisation=experiment.algorithm.normalisation,
            progress=True,
        )


def _check_changes(trained: Experiment, wanted: Experiment) -> None:
    for key, (old, new) in changed_keys(trained, wanted).items():
        own = key in _OWN or (key.partition(".")[0] in _OWN_SECTIONS and key not in _SPLIT_ONCE)
        if not own:
            raise UserError(
                f"the checkpoint was trained with `{key}` {old!r}, which an evaluation cannot change, found {new!r}. "
                "Leave it out, or train with it."
            )


def _stream(checkpoint: Checkpoint, experiment: Experiment, images: LabelledImages, split: str) -> TaskStream:
    if images.pixels.shape[1] != checkpoint.backbone["channels"]:
        raise UserError(
            f"the checkpoint's network takes images of {checkpoint.backbone['channels']} channels, the data have "
            f"{images.pixels.shape[1]}. Set data.channels={checkpoint.backbone['channels']}."
        )
    classes = unseen_classes(checkpoint.split, split, images.class_names, checkpoint.earlier_classes)
    if classes != checkpoint.split[split] and distributed.rank() == 0:
        total = len(images.class_names)
        which = f"all {total}" if len(classes) == total else f"the {len(classes)} of {total} that never trained it"
        tqdm.write(f"{printable(experiment.data.root)} holds no class of the checkpoint's split: {which} are evaluated")
    return task_stream(experiment, images, {split: classes}, split)
