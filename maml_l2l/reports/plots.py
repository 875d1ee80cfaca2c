"""The pictures of a run, an evaluation and a prediction."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from torch.nn.functional import interpolate

from maml_l2l.algorithms.scores import Evaluation
from maml_l2l.reports.lettering import draw_as_written
from maml_l2l.system.errors import UserError, printable
from maml_l2l.system.files import make_folder, write_atomically

_COLUMNS, _PAIRS, _DRAWN_CLASSES, DRAWN_QUERIES = 8, 5, 20, 40  # of a picture of predictions


def check_ending(path: Path | None) -> None:
    """Raise `UserError` where pictures cannot be written as `path` says."""
    from matplotlib.backend_bases import FigureCanvasBase

    if path is not None and _kind(path) not in FigureCanvasBase.get_supported_filetypes():
        raise UserError(f"cannot write a picture as {path}: the ending .{_kind(path)} is not one of .png, .svg, .pdf.")


def _kind(path: Path) -> str:
    return path.suffix.lstrip(".").lower() or "png"


def _save_figure(figure, path: Path) -> None:
    check_ending(path)
    make_folder(path.parent)
    draw_as_written(figure)
    write_atomically(path, lambda file: figure.savefig(file, format=_kind(path), dpi=150))


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
    """The support set above the queries and their classes, as the network sees them, or as `beside_originals` does.

    Each class has a row; where each has one picture, they stand side by side.
    support: (n, C, H, W) uint8, with n class names.  queries: (m, C, H, W) uint8, the first pictures of `predictions`.
    predictions: see `tables.prediction_rows`; the file's name stands below each query.
    What is more than stays readable is left out, and counted.
    """
    from matplotlib.figure import Figure

    pairs = support.shape[3] > support.shape[2]
    columns = _PAIRS if pairs else _COLUMNS
    names = sorted(set(labels))[:_DRAWN_CLASSES]
    shown = {name: support[[label == name for label in labels]][:columns] for name in names}
    drawn = sum(map(len, shown.values()))
    one_each = drawn == len(names)
    rows, query_rows = (math.ceil(count / columns) for count in (drawn, len(queries)))
    heights = [1.25 * rows if one_each else 1.1 * len(names), 1.55 * query_rows]
    figure = Figure(figsize=(1.2 * _COLUMNS + 1, sum(heights) + 1), layout="constrained")
    upper, lower = figure.subfigures(2, 1, height_ratios=[height + 0.5 for height in heights])
    how = ": each picture and what the network sees of it" if pairs else ", as the network sees it"
    upper.suptitle(_shown(f"support set{how}", drawn, len(support)))
    lower.suptitle(_shown("queries and their predictions", len(queries), len(predictions)))
    if one_each:
        pictures = [picture for (picture,) in shown.values()]
        _draw_titled(upper.subplots(rows, columns, squeeze=False).ravel(), pictures, map(_shortened, names))
    else:
        places = upper.subplots(len(names), columns, squeeze=False)
        for row, (name, pictures) in zip(places, shown.items(), strict=True):
            row[0].set_ylabel(_shortened(name), rotation=0, ha="right", va="center", fontsize=9)
            _draw(row, pictures)
    titles = (
        f"{'unsure: ' * found.get('unsure', False)}{_shortened(found['class'])}\n{100 * found['probability']:.1f} %"
        for found in predictions
    )
    places = lower.subplots(query_rows, columns, squeeze=False).ravel()
    _draw_titled(places, queries, titles)
    for place, found in zip(places, predictions, strict=False):
        place.set_xlabel(_shortened(Path(found["path"]).name), fontsize=8)
    _save_figure(figure, Path(path))


def beside_originals(originals: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
    """(N, 3, S, 2 S + S // 8) uint8: originals (N, 3, S, S), each with what the network sees of it, (N, C, H, W)."""
    side = originals.shape[-1]
    seen = interpolate(seen.expand(-1, 3, -1, -1), (side, side), mode="nearest-exact")
    return torch.cat([originals, originals.new_full((*originals.shape[:3], side // 8), 255), seen], 3)


def _shown(what: str, drawn: int, total: int) -> str:
    return what if drawn == total else f"{what} ({drawn} of {total} pictures, {total - drawn} left out)"


def _shortened(name: str) -> str:
    name = printable(name)
    return name if len(name) <= 18 else f"{name[:8]}...{name[-7:]}"


def _draw(places, pictures: Sequence[torch.Tensor] | torch.Tensor) -> None:
    """Each picture in its place, and nothing in the places that are left."""
    for place in places:
        place.set(xticks=[], yticks=[])
        place.spines[:].set_visible(False)
    for place, picture in zip(places, pictures, strict=False):
        place.imshow(picture.movedim(0, -1), cmap="gray", vmin=0, vmax=255)


def _draw_titled(places, pictures: Sequence[torch.Tensor] | torch.Tensor, titles: Iterable[str]) -> None:
    for place, _, title in zip(places, pictures, titles, strict=False):
        place.set_title(title, fontsize=9)
    _draw(places, pictures)


def plot_curves(metrics: Path, path: Path, title: str) -> None:
    """Loss and accuracy of training (thin: each meta-iteration; thick: mean of a window) and validation.

    Lines of `metrics` that hold something else, as after damage, are left out.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullFormatter

    with open(metrics, "rb") as file:
        lines = [_figures(line) for line in file]
    training = [line for line in lines if {"iteration", "loss", "accuracy"} <= line.keys()]
    validation = [line for line in lines if {"iteration", "val_loss", "val_accuracy", "val_ci95"} <= line.keys()]
    figure = Figure(figsize=(9.6, 4.0), layout="constrained")
    figure.suptitle(printable(title))
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


def _figures(line: bytes) -> dict[str, float]:
    """The numbers of one line of metrics; none where it is damaged."""
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    numbers = found if isinstance(found, dict) else {}
    return {key: value for key, value in numbers.items() if isinstance(value, (int, float))}


def _plot_smoothed(axes, iterations: list[int], values: list[float]) -> None:
    import numpy as np

    axes.plot(iterations, values, color="C0", alpha=0.2, linewidth=0.8)
    window = max(1, len(values) // 30)
    smooth = np.convolve(values, np.ones(window) / window, mode="valid")
    start = window // 2  # the mean stands at the middle of its window
    axes.plot(iterations[start : start + len(smooth)], smooth, color="C0", label=f"training (mean of {window})")
