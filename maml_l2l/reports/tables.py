"""What a user reads of an evaluation and a prediction: lines, tables and their JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from maml_l2l.algorithms.calibration import Calibration
from maml_l2l.algorithms.scores import Evaluation
from maml_l2l.config import Experiment, find_protocol
from maml_l2l.system.errors import printable

_RUNNERS_UP = 3  # of each prediction, in its line


def evaluation_table(evaluation: Evaluation) -> str:
    """Mean accuracy and 95 % interval after each number of inner steps, as aligned text."""
    rows = zip(evaluation.steps, evaluation.mean(), evaluation.ci95(), strict=True)
    lines = ["inner steps   accuracy (%)   95 % interval"]
    return "\n".join(lines + [f"{step:11d}   {mean:12.2f}   +- {ci95:.2f}" for step, mean, ci95 in rows])


def evaluation_protocol(
    experiment: Experiment, split: str, name: str | None = None, ensemble: Sequence[str] = ()
) -> dict:
    """What an accuracy depends on beside the checkpoint: the tasks, the classes, how queries are normalised.

    name: of the published protocol that set them, see `maml_l2l.config.PROTOCOLS`.  ensemble: the further checkpoints.
    """
    named: dict[str, Any] = {}
    if name is not None:
        protocol = find_protocol(name)
        named = {"protocol": name, "source": protocol.source, "note": protocol.note}
    if ensemble:
        named["ensemble"] = list(ensemble)
    return named | {
        "tasks": experiment.eval.tasks,
        **experiment.task.model_dump(),
        "rotate": experiment.data.rotate,
        "split": split,
        "normalisation": experiment.algorithm.normalisation,
        "seed": experiment.run.seed,
    }


def evaluation_title(protocol: dict) -> str:
    """One line that says what was measured."""
    queries = "1 query" if protocol["queries"] == 1 else f"{protocol['queries']} queries"
    sizes = f"{protocol['ways']}-way {protocol['shots']}-shot, {queries} a class, {protocol['tasks']} tasks"
    title = f"{sizes}, {protocol['split']} classes, {protocol['normalisation']} statistics"
    if "ensemble" in protocol:
        title += f", mean of {len(protocol['ensemble']) + 1} networks"
    return f"protocol {protocol['protocol']}: {title}" if "protocol" in protocol else title


def evaluation_notes(evaluation: Evaluation, protocol: dict) -> list[str]:
    """Lines on what makes an evaluation another than the protocol's name promises."""
    notes = [f"{protocol['source']}: {protocol['note']}"] if protocol.get("note") else []
    if evaluation.seen_classes and protocol["split"] == "test":
        share = f"{evaluation.seen_classes} of the {evaluation.classes} classes"
        notes.append(f"{share} trained the network: this is no accuracy on unseen classes")
    return notes


def evaluation_json(evaluation: Evaluation, protocol: dict) -> dict:
    """The figures of `evaluation_table` in percent, and the protocol that they were measured by."""
    rows = zip(evaluation.steps, evaluation.mean(), evaluation.ci95(), strict=True)
    accuracy = {str(step): {"mean": mean, "ci95": ci95} for step, mean, ci95 in rows}
    classes = {"classes": evaluation.classes, "seen_classes": evaluation.seen_classes}
    return {"accuracy": accuracy, **protocol, **classes}


def calibration_table(temperature: float, rows: Sequence[Calibration]) -> str:
    """The temperature, and what it does on tasks of each number of ways."""
    lines = [f"temperature {temperature:.3f}", "ways   accuracy (%)   calibration error (%)   with the temperature"]
    return "\n".join(
        lines + [f"{row.ways:4d}   {row.accuracy:12.2f}   {row.before:21.2f}   {row.after:20.2f}" for row in rows]
    )


def prediction_rows(
    paths: list[str], classes: list, probabilities: np.ndarray, least: float = 0.0
) -> list[dict[str, Any]]:
    """For each picture its `path`, `class`, `probability`, and `runners_up`: the other classes, most probable first.

    `unsure` says whether the probability is below `least`.  probabilities: (len(paths), len(classes)).
    """
    found = []
    for path, row in zip(paths, probabilities, strict=True):
        order = (-row).argsort(kind="stable")
        ranking = [{"class": classes[column], "probability": row[column].item()} for column in order]
        unsure = ranking[0]["probability"] < least
        found.append({"path": path, **ranking[0], "unsure": unsure, "runners_up": ranking[1:]})
    return found


def predictions_text(predictions: list[dict]) -> str:
    """One line for each of `prediction_rows`: path, class, probability, and the next classes.

    Names that would forge lines or steer a terminal are shown with escapes.
    """
    lines = []
    for found in predictions:
        first, *others = (f"{one['class']} {100 * one['probability']:.1f} %" for one in [found, *found["runners_up"]])
        if found.get("unsure"):
            first, others = "unsure", [first, *others]
        lines.append(printable(f"{found['path']}: {first} ({', '.join(others[:_RUNNERS_UP])})"))
    return "\n".join(lines)
