"""What the second order costs and what it gives: both orders trained from one config, on the same tasks.

    python -m benchmarks.first_vs_second_order --config configs/omniglot_5w1s.yaml [--set KEY=VALUE ...] [--out DIR]

Trains first and second order side by side, a meta-iteration of each in turn, so that the machine's ups and downs meet
both. Along the way, and against the number of inner steps and the inner learning rate, it takes both meta-gradients at
the same weights and tasks, and compares their direction (cosine) and length (norm ratio, first / second). One fixed
step size, `algorithm.inner_lr`, serves both, whatever the config says of learning it. Writes `report.md`, its pictures
and `report.json`.
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import shlex
import statistics
import time
from pathlib import Path

import torch
from tqdm import tqdm

from benchmarks import common
from benchmarks.engines import peak_memory
from maml_l2l import commands
from maml_l2l.algorithms import build_learner
from maml_l2l.backbones import Conv4, build_backbone
from maml_l2l.config import Algorithm, Experiment, load_experiment, with_overrides
from maml_l2l.data.sources import class_split, load_data
from maml_l2l.experiments.evaluation import evaluate_learner
from maml_l2l.experiments.trainer import MetaTrainer
from maml_l2l.system.machine import describe, machine
from maml_l2l.tasks.batch import TaskBatch
from maml_l2l.tasks.stream import task_stream

ORDERS = ("second", "first")
INNER_STEPS = tuple(range(1, 11))
INNER_LRS = (0.01, 0.03, 0.1, 0.2, 0.4, 0.8, 1.6)


def gradient(network: Conv4, backbone: dict, tasks: TaskBatch, order: str, steps: int, lr: float) -> torch.Tensor:
    """The meta-gradient as one vector, at the weights of `network`, which stay as they are."""
    learner = build_learner(Algorithm(gradient=order, inner_lr=lr), backbone).to(tasks.support.device)
    learner.module.load_state_dict(network.state_dict())
    learner.meta_gradient(tasks, steps)
    return torch.cat([parameter.grad.flatten() for parameter in learner.parameters()]).double()


def compare(network: Conv4, backbone: dict, tasks: TaskBatch, steps: int, lr: float) -> dict:
    """Direction and length of the first-order meta-gradient against the second-order one."""
    second, first = (gradient(network, backbone, tasks, order, steps, lr) for order in ORDERS)
    cosine = (first @ second / (first.norm() * second.norm())).item()
    return {"steps": steps, "inner_lr": lr, "cosine": cosine, "norm_ratio": (first.norm() / second.norm()).item()}


def train_both(experiment: Experiment, points: int) -> dict:
    """Train both orders in turn; `points` times along the way validate both and compare their meta-gradients."""
    device = common.set_up(experiment.run)
    images = load_data(experiment.data)
    split = class_split(experiment.data, images)
    trainers = {
        order: MetaTrainer(
            with_overrides(experiment, {"algorithm.order": order}, "the benchmark"), images, split, device
        )
        for order in ORDERS
    }
    probe = trainers["second"].validation_tasks.batch(10**6, experiment.train.meta_batch).to(device)
    iterations = {order: trainer.iterations() for order, trainer in trainers.items()}
    seconds = dict.fromkeys(ORDERS, 0.0)
    times: dict[str, list[float]] = {order: [] for order in ORDERS}
    curve: list[dict] = []
    total = experiment.train.iterations
    due = {max(1, round(total * (index / points) ** 1.5)) for index in range(1, points + 1)}
    for number in tqdm(range(1, total + 1), "first and second order", disable=None):
        for order in ORDERS:
            start = time.perf_counter()
            next(iterations[order])
            times[order].append(time.perf_counter() - start)
            seconds[order] += times[order][-1]
        if number in due:
            curve.append(_point(experiment, trainers, probe, number, seconds))
    return {
        "curve": curve,
        "ms": {order: 1e3 * statistics.median(times[order]) for order in ORDERS},
        "test": {order: _test(trainer) for order, trainer in trainers.items()},
        "sweeps": _sweeps(trainers["second"], probe),
    }


def _point(experiment: Experiment, trainers: dict, probe: TaskBatch, number: int, seconds: dict) -> dict:
    algorithm, second = experiment.algorithm, trainers["second"]
    gradients = compare(second.learner.module, second.backbone, probe, algorithm.inner_steps, algorithm.inner_lr)
    point: dict = {"iteration": number, "gradients": gradients}
    for order, trainer in trainers.items():
        validation = trainer.validate()
        point[order] = {"seconds": seconds[order], "accuracy": validation.mean()[0], "ci95": validation.ci95()[0]}
    return point


def _test(trainer: MetaTrainer) -> dict:
    experiment = trainer.experiment
    images = trainer.training_tasks.images
    stream = task_stream(experiment, images, trainer.split, "test")
    evaluation = evaluate_learner(
        trainer.learner,
        stream,
        tasks=experiment.eval.tasks,
        steps=[experiment.algorithm.inner_steps],
        device=trainer.device,
        normalisation=experiment.algorithm.normalisation,
    )
    return {"accuracy": evaluation.mean()[0], "ci95": evaluation.ci95()[0], "tasks": experiment.eval.tasks}


def _sweeps(trainer: MetaTrainer, probe: TaskBatch) -> dict:
    """Both meta-gradients against inner steps and inner learning rate, at the initial and at the trained weights."""
    algorithm, backbone = trainer.experiment.algorithm, trainer.backbone
    torch.manual_seed(trainer.experiment.run.seed)
    networks = {"initial": build_backbone(backbone), "trained": trainer.learner.module}
    return {
        name: {
            "steps": [compare(network, backbone, probe, steps, algorithm.inner_lr) for steps in INNER_STEPS],
            "inner_lr": [compare(network, backbone, probe, algorithm.inner_steps, lr) for lr in INNER_LRS],
        }
        for name, network in networks.items()
    }


def _memory_worker(connection, experiment: Experiment) -> None:
    """Peak memory of five meta-iterations, or all where there are fewer, in a process that does nothing else."""
    device = common.set_up(experiment.run)
    images = load_data(experiment.data)
    trainer = MetaTrainer(experiment, images, class_split(experiment.data, images), device)
    before = peak_memory(device.type)
    for _ in itertools.islice(trainer.iterations(), 5):
        pass
    connection.send(peak_memory(device.type) - before)


def peak_memories(experiment: Experiment) -> dict:
    """MiB that the meta-iterations of each order add to the process."""
    context, found = multiprocessing.get_context("spawn"), {}
    for order in ORDERS:
        ours, theirs = context.Pipe()
        settings = with_overrides(experiment, {"algorithm.order": order}, "the benchmark")
        process = context.Process(target=_memory_worker, args=(theirs, settings))
        process.start()
        found[order] = ours.recv()
        process.join()
    return found


def plot_training(results: dict, path: Path) -> None:
    """Accuracy against meta-iterations and seconds, and the two meta-gradients along the way."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 3.9), layout="constrained")
    by_iteration, by_second, gradients = figure.subplots(1, 3)
    curve = results["curve"]
    for order in ORDERS:
        accuracy = [point[order]["accuracy"] for point in curve]
        errors = [point[order]["ci95"] for point in curve]
        for axes, places in (
            (by_iteration, [point["iteration"] for point in curve]),
            (by_second, [point[order]["seconds"] for point in curve]),
        ):
            axes.errorbar(places, accuracy, yerr=errors, fmt="o-", markersize=3, capsize=2, label=f"{order} order")
    by_iteration.set(xlabel="meta-iteration", ylabel="validation accuracy (%), 95 % interval")
    by_second.set(xlabel="training time (s)", ylabel="validation accuracy (%), 95 % interval")
    for axes in (by_iteration, by_second):
        axes.legend(loc="lower right")
    iterations = [point["iteration"] for point in curve]
    for key, label in (("cosine", "cosine"), ("norm_ratio", "norm ratio, first / second")):
        gradients.plot(iterations, [point["gradients"][key] for point in curve], "o-", markersize=3, label=label)
    gradients.axhline(1, color="black", linewidth=0.8)
    gradients.set(xlabel="meta-iteration", ylabel="first- against second-order meta-gradient")
    gradients.legend()
    for axes in (by_iteration, by_second, gradients):
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=150)


def plot_sweeps(results: dict, path: Path) -> None:
    """Cosine and norm ratio of the two meta-gradients against inner steps and inner learning rate."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.6, 6.4), layout="constrained")
    rows = figure.subplots(2, 2)
    for column, (sweep, label) in enumerate((("steps", "inner steps"), ("inner_lr", "inner learning rate"))):
        for row, (key, name) in enumerate((("cosine", "cosine"), ("norm_ratio", "norm ratio, first / second"))):
            axes = rows[row][column]
            for weights, sweeps in results["sweeps"].items():
                found = sweeps[sweep]
                axes.plot(
                    [p[sweep] for p in found], [p[key] for p in found], "o-", markersize=4, label=f"{weights} weights"
                )
            axes.axhline(1, color="black", linewidth=0.8)
            axes.set(xlabel=label, ylabel=name)
            if sweep == "inner_lr":
                axes.set_xscale("log")
                axes.set_xticks(INNER_LRS, [f"{rate:g}" for rate in INNER_LRS])
                axes.minorticks_off()
            axes.grid(alpha=0.3)
            axes.legend()
    figure.suptitle("First-order against second-order meta-gradient, same weights and tasks (1 = identical)")
    figure.savefig(path, dpi=150)


def report(results: dict, experiment: Experiment, config: str) -> str:
    """The figures in words and tables."""
    ms, memory, test = results["ms"], results["memory_mib"], results["test"]
    settings, task, algorithm = experiment.train, experiment.task, experiment.algorithm
    last, first = results["curve"][-1], results["curve"][0]
    sweeps = results["sweeps"]
    header = ["order", "test accuracy (%)", "validation accuracy (%)", "ms/meta-iteration", "MiB"]
    rows = []
    for order in ORDERS:
        accuracies = [f"{part['accuracy']:.2f} +- {part['ci95']:.2f}" for part in (test[order], last[order])]
        rows.append([order, *accuracies, f"{ms[order]:.0f}", f"{memory[order]:.0f}"])
    return f"""# First against second order

`python -m benchmarks.first_vs_second_order --config {config}`

{task.ways}-way {task.shots}-shot, queries a class: {task.queries}, tasks a meta-iteration: {settings.meta_batch}, inner
steps: {algorithm.inner_steps} at {algorithm.inner_lr}, meta-iterations: {settings.iterations};
seed {experiment.run.seed}, the same tasks for both. {describe(results["machine"])}.

{common.table(header, rows)}

Test accuracy is over {test["first"]["tasks"]} tasks after as many inner steps as in training, with 95 % intervals. Time
is the median of meta-iterations taken in turn; memory is what five meta-iterations add to a fresh process.

The second order costs {ms["second"] / ms["first"]:.2f} times the time of the first and
{memory["second"] / memory["first"]:.2f} times its memory. On test classes the two end
{test["second"]["accuracy"] - test["first"]["accuracy"]:+.2f} points apart (second minus first).

![accuracy and meta-gradients along training](training.png)

Left and middle: what each order has reached after as many meta-iterations, and after as many seconds. Right: both
meta-gradients at the weights of the second-order run, on {settings.meta_batch} validation tasks.

{_along(first)}
{_along(last)}

![against inner steps and inner learning rate](gradients.png)

The first-order gradient leaves out the curvature of the support loss, which enters once for each inner step, times the
inner learning rate. {_between(sweeps["initial"]["steps"], "steps", "initial")}
{_between(sweeps["trained"]["steps"], "steps", "trained")}
{_between(sweeps["initial"]["inner_lr"], "inner_lr", "initial")}
{_between(sweeps["trained"]["inner_lr"], "inner_lr", "trained")}
"""


def _between(points: list[dict], key: str, weights: str) -> str:
    first, last, name = points[0], points[-1], {"steps": "inner steps", "inner_lr": "as inner rate"}[key]
    ends = f"{first['cosine']:.3f} at {first[key]:g} and {last['cosine']:.3f} at {last[key]:g}"
    return f"At the {weights} weights the cosine is {ends} {name}."


def _along(point: dict) -> str:
    cosine, ratio = point["gradients"]["cosine"], point["gradients"]["norm_ratio"]
    number = point["iteration"]
    return f"At meta-iteration {number} their cosine is {cosine:.3f}, the ratio of their norms {ratio:.2f}."


def main() -> None:
    """Train, compare, write the report."""
    parser = argparse.ArgumentParser(description="What the second order costs and gives, from one config.")
    parser.add_argument("--config", metavar="FILE", required=True)
    parser.add_argument("--set", metavar="KEY=VALUE", nargs="+", action="extend", default=[])
    parser.add_argument("--points", type=int, default=20, help="validations along the way (default: 20)")
    default = "benchmarks/results/first_vs_second_order"
    parser.add_argument("--out", metavar="DIR", default=default, help=f"folder of the report (default: {default})")
    arguments = parser.parse_args()
    fixed = ["algorithm.learn_inner_lr=false", "model.pretrained=null"]  # one step size, and a start that favours none
    experiment = load_experiment(arguments.config, [*arguments.set, *fixed])
    results = {"machine": machine(), "config": experiment.model_dump(), "memory_mib": peak_memories(experiment)}
    results |= train_both(experiment, arguments.points)
    folder = Path(arguments.out)
    folder.mkdir(parents=True, exist_ok=True)
    common.write_json(str(folder / "report.json"), results)
    plot_training(results, folder / "training.png")
    plot_sweeps(results, folder / "gradients.png")
    options = [arguments.config, *(["--set", *arguments.set] if arguments.set else [])]
    text = report(results, experiment, shlex.join([*options, "--points", str(arguments.points)]))
    (folder / "report.md").write_text(text)
    print(text)


if __name__ == "__main__":
    commands.run(main)
