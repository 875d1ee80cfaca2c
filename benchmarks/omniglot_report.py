"""What the recorded runs on Omniglot come to: `RESULTS.md`, `RESULTS.csv`, the picture, and the table of the README."""

from __future__ import annotations

import csv
import io
import itertools
import json
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks import common, model_cards, omniglot_protocols
from benchmarks.omniglot_runs import (
    CELLS,
    PRETRAINED,
    PROTOCOL,
    RESULTS,
    ROOT,
    accuracy,
    best,
    figure,
    hardware,
    load_runs,
    network,
    published_networks,
    run_files,
    run_name,
    seconds_before,
    start,
    task_of,
    trained_by,
    trained_inductively,
    trained_on,
    training_command,
    training_time,
)
from maml_l2l.system.files import write_json

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PUBLISHED, PICTURE = RESULTS / "published.json", RESULTS / "accuracy.png"
MISREAD = RESULTS.parent / "misread_20w1s.json"
README_TABLE = ("<!-- results: python -m benchmarks.omniglot report -->\n", "<!-- end of results -->\n")
ORDERS = {"second": "second order", "first": "first order"}

RESULTS_PAGE = """\
# Results on Omniglot

Accuracy in % on test characters, with its 95 % interval over the tasks. Where no other is named, it was measured by the
protocol `{protocol}`, that of Finn et al. (2017), on 1,000 tasks: the 423 test characters of the split `finn`, which
neither training nor validation saw; classes rotated; as many queries per class as shots.

![our best runs beside what was published]({picture})

## Our best run of each cell

{best}

- The best run is the one with the highest accuracy on validation tasks. Test tasks choose nothing: they are met once.
- Transductive: the queries of a task are normalised together, as in the paper. Inductive: each query is normalised by
  the support images alone, as `predict` does; a network that is trained so is validated so, and has a row of its own.
  Other runs: the transductive figures of those of the cell. Steps: inner steps per task.
- The seed sets the initial weights and the tasks. The time has validation in it, and compiling unless that is named.
- The network is `Conv4` with 64 filters. Unlike the paper's, each parameter tensor has a learned step size, and where
  the table says so there is max-pooling for the stride, and Meta-Curvature (Park and Oliva, 2019).
- A network that was trained on another task size serves this one as it is. Of more ways the first are used.

## What others published

{published}

The protocols differ, so compare with care. Our protocol is MAML's. MAML++ averages several networks; ours are one each.

## Under every protocol

Our best network per task size, transductive / inductive ([protocols](docs/protocols.md)). Empty: not measured yet.

{protocols}

`lake` is within one alphabet. Of its characters {seen} trained the first network (split `finn`), none `drawings`.

## Where the errors lie

Our 20-way 1-shot network misreads {errors:,} of {queries:,} validation queries. {worst_images} of {images:,} drawings
make {worst_errors} of these errors, and several are none of their class ([analysis](docs/error-analysis.md)).

## All runs

[RESULTS.csv](RESULTS.csv) has one row per run: both accuracies, settings, time, machine, versions, commit and remarks.
Each row names a file in [benchmarks/results/omniglot](benchmarks/results/omniglot), which holds the whole config, the
accuracy after every number of inner steps, and the command that trains the network again. A run that starts from
`runs/NAME/best.pth` needs the run of that name first.

    python -m benchmarks.omniglot record runs/NAME   # evaluate a finished run on test tasks, once, and write its file
    python -m benchmarks.omniglot protocols          # evaluate the published networks under every protocol
    python -m benchmarks.omniglot report             # write this page, the CSV, the picture and the cards anew

Two runs of one command agree to the bit on one machine with the same versions. Elsewhere sums are rounded otherwise,
training amplifies that, and the runs differ as two seeds do.
"""


def results_page(runs: list[dict], published: list[dict]) -> str:
    """The text of `RESULTS.md`."""
    header = ["method", "order", *CELLS.values(), "protocol", "source"]
    measured = omniglot_protocols.load()
    rows = []
    for one in published:
        figures = [published_figure(one, cell) for cell in CELLS]
        rows.append([one["name"], one["order"], *figures, one["protocol"], one["source"]])
    return RESULTS_PAGE.format(
        protocol=PROTOCOL,
        picture=PICTURE.relative_to(ROOT),
        best=_best_table(runs),
        published=common.table(header, rows),
        protocols=omniglot_protocols.table(measured),
        seen=omniglot_protocols.seen(measured),
        **json.loads(MISREAD.read_text()),
    )


def published_figure(one: dict, cell: str) -> str:
    """The figure of a publication in a cell with as many digits as it has there; empty where it has none."""
    found = one["accuracy"].get(cell)
    if found is None:
        return ""
    digits = max(len(str(value["mean"]).partition(".")[2]) for value in one["accuracy"].values())
    return f"{found['mean']:.{digits}f}" + (f" ± {found['ci95']}" if "ci95" in found else "")


def _best_table(runs: list[dict]) -> str:
    header = ["task", "order", "transductive", "inductive", "steps", "seed", "other runs", "trained on"]
    rows = []
    for cell, name in CELLS.items():
        for order, inductive in itertools.product(ORDERS, (False, True)):
            if (run := best(runs, cell, order, inductive)) is None:
                continue
            row = [name, ORDERS[order], figure(run), figure(run, "support"), _steps(run, runs)]
            row += [run["seed"], _others(run, runs), trained_on(run, runs)]
            row += [network(run), training_time(run, runs), hardware(run, runs)]
            rows.append(row)
    return common.table([*header, "network", "time", "machine"], rows)


def _others(run: dict, runs: list[dict]) -> str:
    """The range of the other runs of a cell and an order, trained alike, and their number."""
    kind = run["cell"], run["order"], trained_inductively(run)
    same = [one for one in runs if (one["cell"], one["order"], trained_inductively(one)) == kind and one is not run]
    means = sorted(accuracy(one)["mean"] for one in same)
    if not means:
        return ""
    return f"{means[0]:.2f}" + (f" to {means[-1]:.2f} ({len(means)})" if len(means) > 1 else "")


def _steps(run: dict, runs: list[dict]) -> str:
    """The inner steps that a run was measured with, and those of its training where they were others."""
    used, trained = (one["config"]["algorithm"]["inner_steps"] for one in (run, trained_by(run, runs)))
    return str(used) if used == trained else f"{used} (trained with {trained})"


def results_csv(runs: list[dict]) -> str:
    """The text of `RESULTS.csv`: a row per run, with the columns of `_row`."""
    rows = [_row(run, runs) for run in runs]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([rows[0], *(row.values() for row in rows)])
    return text.getvalue()


def _row(run: dict, runs: list[dict]) -> dict[str, object]:
    algorithm, train, session = run["config"]["algorithm"], run["config"]["train"], run["sessions"][-1]
    return {
        "run": run_name(run),
        **task_of(run),
        "order": run["order"],
        "seed": run["seed"],
        "protocol": PROTOCOL,
        "tasks": run["evaluations"]["batch"]["tasks"],
        "inner_steps": algorithm["inner_steps"],
        **{
            f"{name}_{key}": round(accuracy(run, normalisation)[key], 3)
            for name, normalisation in (("transductive", "batch"), ("inductive", "support"))
            for key in ("mean", "ci95")
        },
        "validation_mean": round(run["val_accuracy"], 3),
        "validation_tasks": train["validate_tasks"],
        "trained_on": trained_on(run, runs),
        "trained_with": "support" if trained_inductively(run) else "batch",
        "downsample": run["config"]["model"]["downsample"],
        "start": start(run) or "",
        "iterations": train["iterations"],
        "best_iteration": run["iteration"],
        **{key: train.get(key, 0) for key in ("meta_batch", "meta_lr", "shift")},
        "inner_lr": "learned" if algorithm["learn_inner_lr"] else algorithm["inner_lr"],
        "precision": run["config"]["run"].get("precision", "float32"),
        "seconds": round(run["seconds"]),
        "seconds_of_starts": round(seconds_before(run, runs)),
        "machine": session.get("gpu", session["processor"]),
        **{key: session[key] for key in ("processes", "threads")},
        **{key: session["versions"][key] for key in ("python", "torch")},
        "commit": run["commit"],
        "remarks": run.get("note", ""),
    }


def readme_table(runs: list[dict], published: list[dict]) -> str:
    """The README's table: a row per cell, with the paper, MAML++, our best runs, and the file of the second order."""
    others = {one["name"]: one for one in published}
    files = {run_name(run): path for path, measured in published_networks(runs).items() for run in measured}
    rows = []
    for cell, name in CELLS.items():
        second, first = (best(runs, cell, order) for order in ORDERS)
        path = files.get(run_name(second))
        row = [name, *(published_figure(others[one], cell) for one in ("MAML", "MAML++")), figure(second)]
        rows.append([*row, figure(first), f"[{path.name}](pretrained/{path.stem}.md)" if path else ""])
    header = ["task", "paper", "MAML++", "ours, second order", "ours, first order", "file"]
    return common.table(header, rows) + "\n"


def plot(runs: list[dict], published: list[dict], path: Path) -> None:
    """A panel per cell: a dot for each transductive publication and our best run of each order, the best on top."""
    from matplotlib.figure import Figure

    drawing = Figure(figsize=(9.6, 6.0), layout="constrained")
    for axes, (cell, name) in zip(drawing.subplots(2, 2).flat, CELLS.items(), strict=True):
        others = [one for one in published if cell in one["accuracy"] and not one.get("inductive")]
        points = [(one["name"], one["accuracy"][cell], "0.5") for one in others]
        for order, color in (("second", "C0"), ("first", "C1")):
            if (run := best(runs, cell, order)) is not None:
                points.append((f"ours, {ORDERS[order]}", accuracy(run), color))
        _dots(axes, sorted(points, key=lambda point: point[1]["mean"]))
        axes.set_title(name, fontsize=11, fontweight="bold")
    drawing.supxlabel("accuracy on test characters (%), with its 95 % interval where it is known", fontsize=9)
    drawing.savefig(path, dpi=150)


def _dots(axes: Axes, points: list[tuple[str, dict, str]]) -> None:
    """Draw names, accuracies and colours as a dot plot, the last on top."""
    for place, (_, found, color) in enumerate(points):
        options = {"fmt": "o", "capsize": 3, "markersize": 7, "color": color}
        axes.errorbar(found["mean"], place, xerr=found.get("ci95"), **options)
        text = {"ha": "center", "fontsize": 8, "color": color}
        axes.annotate(f"{found['mean']:.2f}", (found["mean"], place + 0.2), **text)
    axes.set_yticks(range(len(points)), [name for name, *_ in points], fontsize=9)
    for label, (_, _, color) in zip(axes.get_yticklabels(), points, strict=True):
        label.set(color=color, fontweight="bold" if label.get_text().startswith("ours") else "normal")
    axes.set_ylim(-0.6, len(points) - 0.1)
    axes.margins(x=0.12)
    axes.grid(axis="x", alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


def documents() -> dict[Path, str]:
    """The texts that follow from the recorded runs, as they should stand in the repository."""
    runs, published = load_runs(), json.loads(PUBLISHED.read_text())
    found = {ROOT / "RESULTS.md": results_page(runs, published), ROOT / "RESULTS.csv": results_csv(runs)}
    readme = ROOT / "README.md"
    before, begin, rest = readme.read_text().partition(README_TABLE[0])
    if begin:
        _, end, after = rest.partition(README_TABLE[1])
        found[readme] = before + begin + "\n" + readme_table(runs, published) + "\n" + end + after
    return found | model_cards.documents(runs)


def write() -> None:
    """Write `documents()`, the picture, and each run's command into its file; remove cards of absent networks."""
    for path, run in run_files().items():
        write_json(path, run | {"command": training_command(run)})
    texts = documents()
    for path in set(PRETRAINED.glob("*.md")).difference(texts):
        if not path.with_suffix(".pth").exists():
            path.unlink()
    for path, text in texts.items():
        path.write_text(text, encoding="utf-8")
    plot(load_runs(), json.loads(PUBLISHED.read_text()), PICTURE)
