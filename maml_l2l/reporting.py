"""What a user sees of a run: the metrics file, tables and pictures."""

from __future__ import annotations

import contextlib
import json
import math
import os
import warnings
from pathlib import Path

import torch

from maml_l2l.config import Experiment
from maml_l2l.errors import UserError
from maml_l2l.evaluation import Evaluation
from maml_l2l.files import make_folder, write_atomically

_RUNNERS_UP = 3  # of each prediction, in its line
_COLUMNS, _DRAWN_CLASSES, DRAWN_QUERIES = 8, 20, 40  # of a picture of predictions


class MetricsLog:
    """`metrics.jsonl`, one JSON object a line, and on request the same figures as TensorBoard events.

    Training lines hold `iteration`, `loss`, `accuracy` (percent, means over the meta-batch) and `meta_lr`; validation
    lines `iteration`, `val_loss`, `val_accuracy` and `val_ci95`. No line holds a time: equal runs write equal files.
    """

    def __init__(self, folder: Path, tensorboard: bool, done: int = 0, size: int = 0):
        """Go on after `done` meta-iterations, when the file had `size` bytes: what was written later is cut off."""
        self._path = folder / "metrics.jsonl"
        self._writer = _summary_writer(folder / "tensorboard", done + 1) if tensorboard else None
        try:
            found = self._path.read_bytes()[:size] if size else b""
            self._file = open(self._path, "ab")  # noqa: SIM115, closed by close()
            self._file.truncate(found.rfind(b"\n") + 1)
        except OSError as error:
            raise self._unwritable(error) from None
        if len(found) < size:
            warnings.warn(
                f"{self._path} has lost its last {size - len(found)} bytes since the run was saved", stacklevel=2
            )

    def write(self, iteration: int, **values: float) -> None:
        """Append one line."""
        try:
            self._file.write(json.dumps({"iteration": iteration, **values}).encode() + b"\n")
        except OSError as error:
            raise self._unwritable(error) from None
        if self._writer is not None:
            for name, value in values.items():
                self._writer.add_scalar(name, value, iteration)

    def sync(self) -> int:
        """See everything onto the disk; return the number of bytes that stand there."""
        try:
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise self._unwritable(error) from None
        return self._file.tell()

    def close(self) -> None:
        """Flush and close. What a full disk keeps from being written is beyond the last checkpoint."""
        with contextlib.suppress(OSError):
            self._file.close()
        if self._writer is not None:
            self._writer.close()

    def _unwritable(self, error: OSError) -> UserError:
        return UserError(f"cannot write {self._path}: {error.strerror}. Free space or make the folder writable.")


def _summary_writer(folder: Path, purge_step: int):
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise UserError("run.tensorboard is true, but TensorBoard is not installed: pip install tensorboard.") from None
    return SummaryWriter(str(folder), purge_step=purge_step)


def evaluation_table(evaluation: Evaluation) -> str:
    """Mean accuracy and 95 % interval after each number of inner steps, as aligned text."""
    rows = zip(evaluation.steps, evaluation.mean(), evaluation.ci95(), strict=True)
    lines = ["inner steps   accuracy (%)   95 % interval"]
    return "\n".join(lines + [f"{step:11d}   {mean:12.2f}   +- {ci95:.2f}" for step, mean, ci95 in rows])


def evaluation_protocol(experiment: Experiment, split: str) -> dict:
    """What an accuracy depends on beside the checkpoint: the tasks, the classes, how queries are normalised."""
    return {
        "tasks": experiment.eval.tasks,
        **experiment.task.model_dump(),
        "split": split,
        "normalisation": experiment.algorithm.normalisation,
        "seed": experiment.run.seed,
    }


def evaluation_title(protocol: dict) -> str:
    """One line that says what was measured."""
    queries = "1 query" if protocol["queries"] == 1 else f"{protocol['queries']} queries"
    sizes = f"{protocol['ways']}-way {protocol['shots']}-shot, {queries} a class, {protocol['tasks']} tasks"
    return f"{sizes}, {protocol['split']} classes, {protocol['normalisation']} statistics"


def evaluation_json(evaluation: Evaluation, protocol: dict) -> dict:
    """The figures of `evaluation_table` in percent, and the protocol that they were measured by."""
    rows = zip(evaluation.steps, evaluation.mean(), evaluation.ci95(), strict=True)
    accuracy = {str(step): {"mean": mean, "ci95": ci95} for step, mean, ci95 in rows}
    return {"accuracy": accuracy, **protocol}


def predictions_text(predictions: list[dict]) -> str:
    """One line for each of `prediction.predictions`: path, class, probability, and the next classes."""
    lines = []
    for found in predictions:
        first, *others = (f"{one['class']} {100 * one['probability']:.1f} %" for one in [found, *found["runners_up"]])
        lines.append(f"{found['path']}: {first} ({', '.join(others[:_RUNNERS_UP])})")
    return "\n".join(lines)


def write_json(path: str | Path, content: dict | list) -> None:
    """Write `content` as indented JSON, atomically; the folder is created where it is absent."""
    make_folder(Path(path).parent)
    write_atomically(Path(path), lambda file: file.write((json.dumps(content, indent=2) + "\n").encode()))


def _save_figure(figure, path: Path) -> None:
    kind = Path(path).suffix.lstrip(".").lower() or "png"
    if kind not in figure.canvas.get_supported_filetypes():
        raise UserError(f"cannot write a picture as {path}: the ending .{kind} is not one of .png, .svg, .pdf.")
    make_folder(Path(path).parent)
    write_atomically(Path(path), lambda file: figure.savefig(file, format=kind, dpi=150))


def plot_evaluation(evaluation: Evaluation, path: str | Path, title: str) -> None:
    """Accuracy with error bars (95 % intervals) against the number of inner steps."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.subplots()
    axes.errorbar(evaluation.steps, evaluation.mean(), yerr=evaluation.ci95(), fmt="o-", capsize=3, markersize=4)
    axes.set(title=title, xlabel="inner steps", ylabel="accuracy (%), 95 % interval over tasks")
    axes.set_xticks(evaluation.steps)
    axes.grid(alpha=0.3)
    _save_figure(figure, Path(path))


def plot_predictions(
    support: torch.Tensor, labels: list[str], queries: torch.Tensor, predictions: list[dict], path: str | Path
) -> None:
    """The support set, a row for each class, above the queries and their classes, all as the network sees them.

    support: (n, C, H, W) uint8, with n class names.  queries: (m, C, H, W) uint8, the first pictures of `predictions`.
    What is more than stays readable is left out, and counted.
    """
    from matplotlib.figure import Figure

    names = sorted(set(labels))[:_DRAWN_CLASSES]
    shown = {name: support[[label == name for label in labels]][:_COLUMNS] for name in names}
    rows, query_rows = len(shown), math.ceil(len(queries) / _COLUMNS)
    figure = Figure(figsize=(1.2 * _COLUMNS + 1, 1.1 * rows + 1.4 * query_rows + 1), layout="constrained")
    upper, lower = figure.subfigures(2, 1, height_ratios=[1.1 * rows + 0.5, 1.4 * query_rows + 0.5])
    drawn = sum(map(len, shown.values()))
    upper.suptitle(_shown("support set, as the network sees it", drawn, len(support)))
    lower.suptitle(_shown("queries and their predictions", len(queries), len(predictions)))
    for row, (name, pictures) in zip(upper.subplots(rows, _COLUMNS, squeeze=False), shown.items(), strict=True):
        row[0].set_ylabel(_shortened(name), rotation=0, ha="right", va="center", fontsize=9, parse_math=False)
        _draw(row, pictures)
    axes = lower.subplots(query_rows, _COLUMNS, squeeze=False).ravel()
    for place, found in zip(axes, predictions[: len(queries)], strict=False):
        title = f"{_shortened(found['class'])}\n{100 * found['probability']:.1f} %"
        place.set_title(title, fontsize=9, parse_math=False)
    _draw(axes, queries)
    _save_figure(figure, Path(path))


def _shown(what: str, drawn: int, total: int) -> str:
    return what if drawn == total else f"{what} ({drawn} of {total} pictures, {total - drawn} left out)"


def _shortened(name: str) -> str:
    return name if len(name) <= 18 else f"{name[:8]}...{name[-7:]}"


def _draw(places, pictures: torch.Tensor) -> None:
    """Each picture in its place, and nothing in the places that are left."""
    for place in places:
        place.set(xticks=[], yticks=[])
        place.spines[:].set_visible(False)
    for place, picture in zip(places, pictures, strict=False):
        place.imshow(picture.movedim(0, -1), cmap="gray", vmin=0, vmax=255)


def plot_curves(metrics: Path, path: Path, title: str) -> None:
    """Loss and accuracy of training (thin: each meta-iteration; thick: mean of a window) and validation."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullFormatter

    with open(metrics, encoding="utf-8") as file:
        lines = [json.loads(line) for line in file]
    training = [line for line in lines if "loss" in line]
    validation = [line for line in lines if "val_loss" in line]
    figure = Figure(figsize=(9.6, 4.0), layout="constrained")
    figure.suptitle(title)
    loss_axes, accuracy_axes = figure.subplots(1, 2)
    for axes, key in ((loss_axes, "loss"), (accuracy_axes, "accuracy")):
        if training:  # a pretrained network is validated before it is trained any further
            _plot_smoothed(axes, [line["iteration"] for line in training], [line[key] for line in training])
        iterations = [line["iteration"] for line in validation]
        values = [line[f"val_{key}"] for line in validation]
        errors = [line["val_ci95"] for line in validation] if key == "accuracy" else None
        axes.errorbar(
            iterations, values, yerr=errors, fmt="o-", markersize=4, capsize=3, color="C1", label="validation"
        )
        axes.set_xlabel("meta-iteration")
        axes.grid(alpha=0.3)
        axes.legend()
    loss_axes.set(ylabel="query loss after adaptation (nats)", yscale="log")
    loss_axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    loss_axes.yaxis.set_major_formatter("{x:g}")
    loss_axes.yaxis.set_minor_formatter(NullFormatter())
    accuracy_axes.set_ylabel("query accuracy after adaptation (%)")
    _save_figure(figure, path)


def _plot_smoothed(axes, iterations: list[int], values: list[float]) -> None:
    import numpy as np

    axes.plot(iterations, values, color="C0", alpha=0.2, linewidth=0.8)
    window = max(1, len(values) // 30)
    smooth = np.convolve(values, np.ones(window) / window, mode="valid")
    start = window // 2  # the mean stands at the middle of its window
    axes.plot(iterations[start : start + len(smooth)], smooth, color="C0", label=f"training (mean of {window})")
