"""What each approximation of the meta-gradient leaves of the exact one, and what it costs.

    python -m benchmarks.meta_gradients --config configs/omniglot_5w1s.yaml [--set KEY=VALUE ...] [--out DIR]

Trains side by side what `--trained` names, a meta-iteration of each in turn, so that the machine's ups and downs meet
all. Along the way, and against inner steps and inner learning rate, it takes every meta-gradient of `--compared` at the
weights of the first and on the same tasks, and holds it against the exact one: direction (cosine) and length (norm
ratio). Then time and peak memory, each in a process of its own. One fixed step size, `algorithm.inner_lr`, serves all,
whatever the config says of learning it. Writes `report.md`, its pictures and `report.json`.
"""

from __future__ import annotations

import argparse
import multiprocessing
import shlex
import statistics
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from torch import nn
from tqdm import tqdm

from benchmarks import common, meta_gradients_report
from benchmarks.engines import peak_memory
from maml_l2l import commands
from maml_l2l.algorithms import build_learner
from maml_l2l.backbones import build_backbone
from maml_l2l.config import Experiment, load_experiment, with_overrides
from maml_l2l.data.sources import class_split, load_data
from maml_l2l.experiments.evaluation import evaluate_learner
from maml_l2l.experiments.trainer import MetaTrainer
from maml_l2l.system.machine import machine
from maml_l2l.tasks.batch import TaskBatch
from maml_l2l.tasks.stream import task_stream

EXACT, APPROXIMATIONS = "second", ("first", "finite_difference", "implicit", "reptile")
INNER_STEPS = (1, 2, 3, 5, 10, 20, 50)
INNER_LRS = (0.01, 0.03, 0.1, 0.2, 0.4, 0.8, 1.6)
COST_STEPS = (1, 5, 20, 50)
_ONE_RATE = ["algorithm.learn_inner_lr=false", "algorithm.update=sgd"]
_NO_START = ["model.pretrained=null"]  # a start that favours none


def gradient(network: nn.Module, trainer: MetaTrainer, tasks: TaskBatch, kind: str, steps: int, lr: float):
    """The meta-gradient `kind` as one vector, at the weights of `network`, which stay as they are."""
    changes = {"algorithm.gradient": kind, "algorithm.inner_lr": lr, "algorithm.engine": "vectorized"}
    algorithm = with_overrides(trainer.experiment, changes, "the benchmark").algorithm
    learner = build_learner(algorithm, trainer.backbone).to(tasks.support.device)
    learner.module.load_state_dict(network.state_dict())
    learner.meta_gradient(tasks, steps)
    return torch.cat([parameter.grad.flatten() for parameter in learner.parameters()]).double()


def compare(network: nn.Module, trainer: MetaTrainer, tasks: TaskBatch, kinds: Sequence[str], steps: int, lr: float):
    """Direction and length of each meta-gradient of `kinds` against the exact one."""
    exact, found = gradient(network, trainer, tasks, EXACT, steps, lr), {}
    for kind in kinds:
        other = gradient(network, trainer, tasks, kind, steps, lr)
        cosine = (other @ exact / (other.norm() * exact.norm())).item()
        found[kind] = {"cosine": cosine, "norm_ratio": (other.norm() / exact.norm()).item()}
    return {"steps": steps, "inner_lr": lr, **found}


def train_all(experiment: Experiment, trained: Sequence[str], compared: Sequence[str], points: int) -> dict:
    """Train each of `trained` in turn; `points` times along the way validate all and compare at the first's weights."""
    device = common.set_up(experiment.run)
    images = load_data(experiment.data)
    split = class_split(experiment.data, images)
    trainers = {
        kind: MetaTrainer(
            with_overrides(experiment, {"algorithm.gradient": kind}, "the benchmark"), images, split, device
        )
        for kind in trained
    }
    first = trainers[trained[0]]
    probe = first.validation_tasks.batch(10**6, experiment.train.meta_batch).to(device)
    iterations = {kind: trainer.iterations() for kind, trainer in trainers.items()}
    times: dict[str, list[float]] = {kind: [] for kind in trained}
    curve: list[dict] = []
    total = experiment.train.iterations
    due = {max(1, round(total * (index / points) ** 1.5)) for index in range(1, points + 1)}
    for number in tqdm(range(1, total + 1), ", ".join(trained), disable=None):
        for kind in trained:
            start = time.perf_counter()
            next(iterations[kind])
            times[kind].append(time.perf_counter() - start)
        if number in due:
            curve.append(_point(trainers, first, probe, compared, number, times))
    return {
        "curve": curve,
        "ms": {kind: 1e3 * statistics.median(times[kind]) for kind in trained},
        "test": {kind: _test(trainer) for kind, trainer in trainers.items()},
        "sweeps": _sweeps(first, probe, compared),
    }


def _point(trainers: dict, first: MetaTrainer, probe: TaskBatch, compared: Sequence[str], number: int, times: dict):
    algorithm = first.experiment.algorithm
    gradients = compare(first.learner.module, first, probe, compared, algorithm.inner_steps, algorithm.inner_lr)
    point: dict = {"iteration": number, "gradients": gradients}
    for kind, trainer in trainers.items():
        validation = trainer.validate()
        point[kind] = {"seconds": sum(times[kind]), "accuracy": validation.mean()[0], "ci95": validation.ci95()[0]}
    return point


def _test(trainer: MetaTrainer) -> dict:
    experiment = trainer.experiment
    evaluation = evaluate_learner(
        trainer.learner,
        task_stream(experiment, trainer.training_tasks.images, trainer.split, "test"),
        tasks=experiment.eval.tasks,
        steps=[experiment.algorithm.inner_steps],
        device=trainer.device,
        normalisation=experiment.algorithm.normalisation,
    )
    return {"accuracy": evaluation.mean()[0], "ci95": evaluation.ci95()[0], "tasks": experiment.eval.tasks}


def _sweeps(trainer: MetaTrainer, probe: TaskBatch, compared: Sequence[str]) -> dict:
    """Every meta-gradient against inner steps and inner learning rate, at the initial and at the trained weights."""
    algorithm = trainer.experiment.algorithm
    torch.manual_seed(trainer.experiment.run.seed)
    networks = {"initial": build_backbone(trainer.backbone), "trained": trainer.learner.module}
    return {
        name: {
            "steps": [compare(network, trainer, probe, compared, steps, algorithm.inner_lr) for steps in INNER_STEPS],
            "inner_lr": [compare(network, trainer, probe, compared, algorithm.inner_steps, lr) for lr in INNER_LRS],
        }
        for name, network in networks.items()
    }


def _cost_worker(connection: Connection, experiment: Experiment, done: int) -> None:
    """Time and peak memory of some meta-gradients, in a process that does nothing else."""
    device = common.set_up(experiment.run)
    images = load_data(experiment.data)
    trainer = MetaTrainer(experiment, images, class_split(experiment.data, images), device)
    trainer.done = done
    trainer.anneal()
    tasks = trainer.training_tasks.batch(0, experiment.train.meta_batch).to(device)
    sizes = experiment.algorithm.inner_steps, experiment.algorithm.normalisation
    before, times = peak_memory(device.type), []
    while len(times) < 2 or (len(times) < 6 and sum(times) < 10_000):
        times.append(common.milliseconds(lambda: trainer.learner.meta_gradient(tasks, *sizes)))
    connection.send({"ms": statistics.median(times[1:]), "mib": peak_memory(device.type) - before})


def cost(experiment: Experiment, done: int = 0) -> dict:
    """`ms` and `mib` of a meta-gradient of the vectorized engine, uncompiled, in a process of its own.

    done: meta-iterations before it, for what changes along training.
    """
    experiment = with_overrides(experiment, {"algorithm.engine": "vectorized", "run.compile": False}, "the benchmark")
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_cost_worker, args=(theirs, experiment, done))
    process.start()
    theirs.close()  # so that the end of the process is an end for `recv`
    found = ours.recv()
    process.join()
    return found


def costs(experiment: Experiment, kinds: Sequence[str]) -> list[dict]:
    """Milliseconds and MiB of a meta-gradient of each kind, uncompiled, against the inner steps."""
    found = []
    for kind in kinds:
        for steps in COST_STEPS:
            changes = {"algorithm.gradient": kind, "algorithm.inner_steps": steps}
            settings = with_overrides(experiment, changes, "the benchmark")
            found.append({"gradient": kind, "steps": steps, **cost(settings)})
    return found


def main(trained: Sequence[str] = (EXACT,), compared: Sequence[str] = APPROXIMATIONS, name="meta_gradients") -> None:
    """Train, compare, write the report. The parameters are the defaults of the options."""
    parser = argparse.ArgumentParser(description="What approximations of the meta-gradient leave of it, and cost.")
    parser.add_argument("--config", metavar="FILE", required=True)
    parser.add_argument("--set", metavar="KEY=VALUE", nargs="+", action="extend", default=[])
    kinds = (EXACT, *APPROXIMATIONS)
    parser.add_argument("--trained", nargs="+", choices=kinds, default=list(trained), help="meta-gradients to train by")
    parser.add_argument("--compared", nargs="+", choices=APPROXIMATIONS, default=list(compared))
    parser.add_argument("--points", type=int, default=20, help="validations along the way (default: 20)")
    default = f"benchmarks/results/{name}"
    parser.add_argument("--out", metavar="DIR", default=default, help=f"folder of the report (default: {default})")
    arguments = parser.parse_args()
    experiment = load_experiment(arguments.config, [*arguments.set, *_ONE_RATE, *_NO_START])
    results = {"machine": machine(), "config": experiment.model_dump()}
    results["costs"] = costs(experiment, (EXACT, *arguments.compared))
    results |= train_all(experiment, arguments.trained, arguments.compared, arguments.points)
    command = ["--config", arguments.config, *(["--set", *arguments.set] if arguments.set else [])]
    command += ["--trained", *arguments.trained, "--compared", *arguments.compared, "--points", str(arguments.points)]
    print(meta_gradients_report.write(results, experiment, shlex.join(command), Path(arguments.out)))


if __name__ == "__main__":
    commands.run(main)
