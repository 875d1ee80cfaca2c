"""The report of `benchmarks.meta_gradients`: tables, pictures and what they say."""

from __future__ import annotations

from pathlib import Path

from benchmarks import common
from maml_l2l.config import Experiment
from maml_l2l.system.machine import describe

NAMES = {
    "second": "second order (exact)",
    "first": "first order",
    "finite_difference": "finite differences",
    "implicit": "implicit",
    "reptile": "Reptile",
}
_KEYS = (("cosine", "cosine to the exact one"), ("norm_ratio", "norm, over that of the exact one"))


def write(results: dict, experiment: Experiment, command: str, folder: Path) -> str:
    """Write `report.json`, the pictures and `report.md` into `folder`; return the text."""
    folder.mkdir(parents=True, exist_ok=True)
    common.write_json(str(folder / "report.json"), results)
    _plot_training(results, folder / "training.png")
    _plot_sweeps(results, folder / "gradients.png")
    _plot_costs(results, folder / "costs.png")
    text = _text(results, experiment, command)
    (folder / "report.md").write_text(text)
    return text


def compared_in(results: dict) -> list[str]:
    """The approximations that were held against the exact meta-gradient."""
    return [kind for kind in NAMES if kind in results["curve"][0]["gradients"]]


def _plot_training(results: dict, path: Path) -> None:
    """Accuracy against seconds, and the meta-gradients along the way."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 3.9), layout="constrained")
    accuracy, *gradients = figure.subplots(1, 3)
    curve = results["curve"]
    for kind in results["ms"]:
        values, errors = ([point[kind][key] for point in curve] for key in ("accuracy", "ci95"))
        seconds = [point[kind]["seconds"] for point in curve]
        accuracy.errorbar(seconds, values, yerr=errors, fmt="o-", markersize=3, capsize=2, label=NAMES[kind])
    accuracy.set(xlabel="training time (s)", ylabel="validation accuracy (%), 95 % interval")
    accuracy.legend(loc="lower right")
    iterations = [point["iteration"] for point in curve]
    for axes, (key, label) in zip(gradients, _KEYS, strict=True):
        for kind in compared_in(results):
            values = [point["gradients"][kind][key] for point in curve]
            axes.plot(iterations, values, "o-", markersize=3, label=NAMES[kind])
        _finish(axes, key, "meta-iteration", label)
    gradients[0].legend()
    accuracy.grid(alpha=0.3)
    figure.savefig(path, dpi=150)


def _plot_sweeps(results: dict, path: Path) -> None:
    """Cosine and norm ratio against the number of inner steps and the inner learning rate."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 6.4), layout="constrained")
    columns = [(sweep, weights) for sweep in ("steps", "inner_lr") for weights in results["sweeps"]]
    grid = figure.subplots(2, len(columns), sharey="row")
    for column, (sweep, weights) in enumerate(columns):
        found = results["sweeps"][weights][sweep]
        for row, (key, label) in enumerate(_KEYS):
            axes = grid[row][column]
            for kind in compared_in(results):
                values = [point[kind][key] for point in found]
                axes.plot([point[sweep] for point in found], values, "o-", markersize=3.5, label=NAMES[kind])
            axes.set_xscale("log")
            ticks = [point[sweep] for point in found]
            axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
            axes.minorticks_off()
            name = {"steps": "inner steps", "inner_lr": "inner learning rate"}[sweep]
            _finish(axes, key, name, label if column == 0 else "")
            axes.set_title(f"{weights} weights", fontsize=10)
    grid[0][0].legend()
    figure.suptitle("Approximations against the exact meta-gradient, at the same weights and tasks (1 = identical)")
    figure.savefig(path, dpi=150)


def _finish(axes, key: str, xlabel: str, ylabel: str) -> None:
    axes.axhline(1, color="black", linewidth=0.8)
    axes.set(xlabel=xlabel, ylabel=ylabel)
    if key == "norm_ratio":
        axes.set_yscale("log")
    axes.grid(alpha=0.3)


def _plot_costs(results: dict, path: Path) -> None:
    """Time and memory against the number of inner steps."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.6, 3.9), layout="constrained")
    for axes, key, label in zip(
        figure.subplots(1, 2), ("ms", "mib"), ("ms per meta-gradient", "MiB added"), strict=True
    ):
        for kind in dict.fromkeys(row["gradient"] for row in results["costs"]):
            rows = [row for row in results["costs"] if row["gradient"] == kind]
            axes.plot(
                [row["steps"] for row in rows], [row[key] for row in rows], "o-", markersize=3.5, label=NAMES[kind]
            )
        axes.set(xlabel="inner steps", ylabel=label, ylim=(0, None))
        axes.grid(alpha=0.3)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=5, fontsize=8, frameon=False)
    figure.savefig(path, dpi=150)


def _text(results: dict, experiment: Experiment, command: str) -> str:
    settings, task, algorithm = experiment.train, experiment.task, experiment.algorithm
    tests = next(iter(results["test"].values()))["tasks"]
    return f"""# Approximations of the meta-gradient

`python -m benchmarks.meta_gradients {command}`

{task.ways}-way {task.shots}-shot, {settings.meta_batch} tasks per meta-iteration,
{_steps(algorithm.inner_steps, "inner step")} at {algorithm.inner_lr},
{settings.iterations} meta-iterations, seed {experiment.run.seed}; implicit: lambda
{algorithm.proximal}, {algorithm.cg_steps} steps of conjugate gradients. {describe(results["machine"])}.

## Trained

{_trained_table(results)}

Test accuracy is over {tests} tasks, with 95 % intervals. Time is the median of meta-iterations taken in turn.

![accuracy and meta-gradients along training](training.png)

## Against the exact meta-gradient

Cosine and norm ratio, on the same {settings.meta_batch} validation tasks:

{_agreement_table(results)}

![against inner steps and inner learning rate](gradients.png)

## Cost

Milliseconds and MiB of one meta-gradient, uncompiled, each in a process of its own:

{_cost_table(results)}

![time and memory against inner steps](costs.png)

## What it shows

{_words(results)}
"""


def _steps(count: int, what: str = "step") -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def _trained_table(results: dict) -> str:
    rows = []
    for kind, ms in results["ms"].items():
        parts = results["test"][kind], results["curve"][-1][kind]
        rows.append([NAMES[kind], *(f"{part['accuracy']:.2f} ± {part['ci95']:.2f}" for part in parts), f"{ms:.0f}"])
    return common.table(["meta-gradient", "test (%)", "validation (%)", "ms per meta-iteration"], rows)


def _places(results: dict) -> dict[str, dict]:
    """Where the meta-gradients are compared in the table."""
    places = {}
    for weights, sweeps in results["sweeps"].items():
        steps = sweeps["steps"]
        places |= {f"{weights}, {_steps(point['steps'])}": point for point in (steps[0], steps[3], steps[-1])}
    return places


def _agreement_table(results: dict) -> str:
    kinds = compared_in(results)
    rows = [
        [place, *(f"{point[kind]['cosine']:.3f}, {point[kind]['norm_ratio']:.2f}" for kind in kinds)]
        for place, point in _places(results).items()
    ]
    return common.table(["weights, inner steps", *(NAMES[kind] for kind in kinds)], rows)


def _cost_table(results: dict) -> str:
    steps = list(dict.fromkeys(row["steps"] for row in results["costs"]))
    rows = []
    for kind in dict.fromkeys(row["gradient"] for row in results["costs"]):
        found = [row for row in results["costs"] if row["gradient"] == kind]
        rows.append([NAMES[kind], *(f"{row['ms']:.0f} ms, {row['mib']:.0f} MiB" for row in found)])
    return common.table(["meta-gradient", *(_steps(k) for k in steps)], rows)


def _words(results: dict) -> str:
    lines = []
    for kind in compared_in(results):
        first, last = (results["curve"][i]["gradients"][kind]["cosine"] for i in (0, -1))
        few, many = (results["sweeps"]["trained"]["steps"][i] for i in (0, -1))
        rows = {(row["gradient"], row["steps"]): row["ms"] for row in results["costs"]}
        cost = rows[kind, results["costs"][0]["steps"]] / rows["second", results["costs"][0]["steps"]]
        lines.append(
            f"- {NAMES[kind]}: its cosine to the exact one goes from {first:.3f} to {last:.3f} along training. At the "
            f"trained weights it is {few[kind]['cosine']:.3f} with {few['steps']} inner step and "
            f"{many[kind]['cosine']:.3f} with {many['steps']}. One step of it takes {cost:.2f} times as long."
        )
    return "\n".join(lines)
