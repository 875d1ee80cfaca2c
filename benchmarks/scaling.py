"""Meta-iterations a second against the number of processes, each with one thread, on one machine.

    python -m benchmarks.scaling [--config FILE] [--set KEY=VALUE ...] [--processes 1 2] [--json FILE] [--plot FILE]

Every group of processes trains from the same config, as `torchrun` would have it, and the groups take turns, so that a
change of the machine's speed meets all of them. Figures are medians over `--repeats` turns of `--iterations`
meta-iterations. The time of the all-reduce alone is measured beside them, and what it would cost on a network computed.
"""

from __future__ import annotations

import multiprocessing
import os
import statistics
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from benchmarks import common
from maml_l2l import commands
from maml_l2l.config import Experiment, load_experiment, with_overrides
from maml_l2l.data.sources import class_split, load_data
from maml_l2l.experiments.trainer import MetaTrainer
from maml_l2l.system import distributed
from maml_l2l.system.machine import describe, machine

_LATENCY_S, _BYTES_PER_S = 50e-6, 1.25e9  # of a message between two machines on 10 Gbit/s Ethernet


def serve(connection: Connection, rank: int, world: int, meeting_point: str, experiment: Experiment) -> None:
    """A worker: warm up, then train or reduce as often as asked; answers with seconds."""
    device = common.set_up(experiment.run)
    init_method = f"file://{meeting_point}"
    torch.distributed.init_process_group("gloo", init_method=init_method, rank=rank, world_size=world)
    images = load_data(experiment.data)
    trainer = MetaTrainer(experiment, images, class_split(experiment.data, images), device)
    steps = trainer.iterations()
    for _ in range(2):
        next(steps)
    parameters = [parameter.detach().clone() for parameter in trainer.learner.parameters()]
    connection.send(sum(parameter.numel() for parameter in parameters))
    while (order := connection.recv()) is not None:
        what, times = order
        torch.distributed.barrier()
        start = time.perf_counter()
        for _ in range(times):
            if what == "train":
                next(steps)
            else:
                distributed.sum_in_place(parameters)
        connection.send(time.perf_counter() - start)


class Group:
    """`world` processes that train together."""

    def __init__(self, world: int, experiment: Experiment, folder: str):
        context = multiprocessing.get_context("spawn")
        self.world, self.rates, self.reductions, self.connections = world, [], [], []
        for rank in range(world):
            ours, theirs = context.Pipe()
            arguments = (theirs, rank, world, os.path.join(folder, f"meeting-{world}"), experiment)
            context.Process(target=serve, args=arguments, daemon=True).start()
            theirs.close()
            self.connections.append(ours)
        counts = [connection.recv() for connection in self.connections]  # once they are warm
        self.parameters = counts[0]

    def turn(self, what: str, times: int) -> float:
        """Seconds for each of `times` meta-iterations or all-reduces: those of the slowest process."""
        for connection in self.connections:
            connection.send((what, times))
        return max(connection.recv() for connection in self.connections) / times

    def close(self) -> None:
        """Let the processes end."""
        for connection in self.connections:
            connection.send(None)


def on_paper(parameters: int, compute_s: float, tasks: int) -> list[dict]:
    """A ring all-reduce among machines of one process each, beside each one's share of the compute."""
    rows = []
    for world in (2, 4, 8, 16, 32, 64):
        reduce_s = 2 * (world - 1) * (_LATENCY_S + 4 * parameters / world / _BYTES_PER_S)
        share_s = compute_s * -(-tasks // world) / tasks  # the largest share counts
        speed_up = compute_s / (share_s + reduce_s)
        rows.append(
            {"processes": world, "compute_ms": 1e3 * share_s, "reduce_ms": 1e3 * reduce_s, "speed_up": speed_up}
        )
    return rows


def plot(rows: list[dict], paper: list[dict], path: str, title: str) -> None:
    """Left: measured here. Right: computed for a network."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.6, 4.0), layout="constrained")
    figure.suptitle(title, fontsize=9)
    measured, computed = figure.subplots(1, 2)
    for axes, found, name in ((measured, rows, "measured on one machine"), (computed, paper, "computed, 10 Gbit/s")):
        worlds = [row["processes"] for row in found]
        axes.plot(worlds, worlds, color="black", linewidth=0.8, label="ideal")
        axes.plot(worlds, [row["speed_up"] for row in found], "o-", label=name)
        axes.set(xlabel="processes, one thread each", ylabel="speed-up over one process")
        axes.set_xticks(worlds, worlds)
        axes.grid(alpha=0.3)
        axes.legend()
    computed.set(xscale="log", yscale="log")
    worlds = [row["processes"] for row in paper]
    computed.set_xticks(worlds, worlds)
    computed.set_yticks(worlds, worlds)
    computed.minorticks_off()
    figure.savefig(path, dpi=150)


def main() -> None:
    """Measure, print, write."""
    parser = common.parser("Meta-iterations a second against the number of processes.")
    parser.add_argument("--config", metavar="FILE", default="configs/quickstart.yaml")
    parser.add_argument("--set", metavar="KEY=VALUE", nargs="+", action="extend", default=[])
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2], help="group sizes (default: 1 2)")
    parser.add_argument("--iterations", type=int, default=5, help="meta-iterations a turn (default: 5)")
    parser.add_argument("--repeats", type=int, default=9, help="turns (default: 9)")
    arguments = parser.parse_args()
    experiment = load_experiment(arguments.config, ["train.meta_batch=32", *arguments.set])
    fixed = {"run.threads": 1, "run.device": "cpu", "train.iterations": 10**6}
    compile_ = experiment.run.compile if experiment.run.compile != "auto" else False
    experiment = with_overrides(experiment, {**fixed, "run.compile": compile_}, "the command line")
    load_data(experiment.data)
    found = machine()
    print(describe(found))
    with tempfile.TemporaryDirectory() as folder:
        groups = [Group(world, experiment, folder) for world in sorted({1, *arguments.processes})]
        for _ in range(arguments.repeats):
            for group in groups:
                group.rates.append(1 / group.turn("train", arguments.iterations))
                group.reductions.append(group.turn("reduce", 20))
        for group in groups:
            group.close()
    alone = statistics.median(groups[0].rates)
    rows = [
        {
            "processes": group.world,
            "iterations_per_s": statistics.median(group.rates),
            "speed_up": statistics.median(group.rates) / alone,
            "reduce_ms": 1e3 * statistics.median(group.reductions),
        }
        for group in groups
    ]
    paper = on_paper(groups[0].parameters, 1 / alone, experiment.train.meta_batch)
    header = ["processes", "meta-iterations/s", "speed-up", "all-reduce (ms)"]
    cells = [
        [r["processes"], *(f"{r[key]:.2f}" for key in ("iterations_per_s", "speed_up", "reduce_ms"))] for r in rows
    ]
    print(common.table(header, cells))
    header = ["processes", "compute (ms)", "all-reduce (ms)", "speed-up"]
    cells = [[r["processes"], *(f"{r[key]:.1f}" for key in ("compute_ms", "reduce_ms", "speed_up"))] for r in paper]
    print(f"On paper, {groups[0].parameters:,} parameters, 10 Gbit/s and {1e6 * _LATENCY_S:.0f} us a message:")
    print(common.table(header, cells))
    common.write_json(
        arguments.json, {"machine": found, "config": experiment.model_dump(), "rows": rows, "paper": paper}
    )
    if arguments.plot:
        Path(arguments.plot).parent.mkdir(parents=True, exist_ok=True)
        plot(
            rows,
            paper,
            arguments.plot,
            f"{experiment.task.ways}-way {experiment.task.shots}-shot, {describe(found)}",
        )


if __name__ == "__main__":
    commands.run(main)
