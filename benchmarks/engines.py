"""How fast, how large and how near the machine's peak: one meta-gradient by each engine and by other packages.

    python -m benchmarks.engines [--settings 5w1s 20w1s] [--orders second first] [--json FILE] [--plot FILE]

Each engine works in a process of its own, so that its peak memory is its own; the processes take turns, one
meta-iteration each, so that a change of the machine's speed meets all of them. Figures are medians over `--repeats`
turns. GFLOP/s count the work of learn2learn's loop for every engine, whatever it saves or repeats. `loop` is
learn2learn with nothing around it; `loop+malloc` is the same in a process set up as this package's training does it;
`recompute` is `vectorized` with `algorithm.recompute: sqrt`; `bfloat16` is `compiled` with `run.precision: bfloat16`.
MiB is the process's peak, and in brackets what the work added.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import statistics
import sys
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import common, peers
from maml_l2l.algorithms import build_learner
from maml_l2l.algorithms.loop import LoopMAML
from maml_l2l.algorithms.meta_learner import MetaLearner
from maml_l2l.backbones import Conv4
from maml_l2l.config import Algorithm
from maml_l2l.system.machine import describe, machine
from maml_l2l.system.memory import keep_freed_memory
from maml_l2l.tasks.batch import TaskBatch


class Setting(NamedTuple):
    """The sizes of a meta-iteration, as the paper trains, and how the network halves images."""

    ways: int
    shots: int
    queries: int
    tasks: int
    steps: int
    inner_lr: float
    downsample: str = "stride"


SETTINGS = {
    "5w1s": Setting(5, 1, 1, 32, 1, 0.4),
    "5w5s": Setting(5, 5, 5, 32, 1, 0.4),
    "20w1s": Setting(20, 1, 1, 16, 5, 0.1),
    "20w5s": Setting(20, 5, 5, 16, 5, 0.1),
    "5w1s_max_pool": Setting(5, 1, 1, 32, 1, 0.4, "max_pool"),
    "20w1s_max_pool": Setting(20, 1, 1, 16, 1, 0.1, "max_pool"),
}
ENGINES = ("loop", "loop+malloc", "vectorized", "compiled", "recompute", "bfloat16", *peers.PEERS)


def random_tasks(setting: Setting) -> TaskBatch:
    """Tasks of random ink: the pixels do not matter for the time."""
    generator = torch.Generator().manual_seed(0)

    def images(a_class: int) -> torch.Tensor:
        return (torch.rand(setting.tasks, setting.ways * a_class, 1, 28, 28, generator=generator) > 0.9).float()

    def labels(a_class: int) -> torch.Tensor:
        return torch.arange(setting.ways).repeat_interleave(a_class).expand(setting.tasks, -1)

    shots, queries = setting.shots, setting.queries
    return TaskBatch(images(shots), labels(shots), images(queries), labels(queries), setting.ways)


def make_step(engine: str, setting: Setting, order: str, device: str) -> Callable[[], object]:
    """One meta-gradient over all tasks of the setting; the device has finished when it returns."""
    torch.manual_seed(0)
    tasks, first_order = random_tasks(setting), order == "first"
    backbone = {"ways": setting.ways, "channels": 1, "filters": 64, "downsample": setting.downsample}
    tasks = tasks.to(torch.device(device))
    if engine in peers.PEERS:
        network = Conv4(**backbone).to(device)
        take = peers.PEERS[engine](network, tasks, setting.inner_lr, setting.steps, first_order)
        return lambda: finished(take, device)
    if engine == "loop+malloc":
        keep_freed_memory()
    if engine.startswith("loop"):
        learner: MetaLearner = LoopMAML(Conv4(**backbone), lr=setting.inner_lr, first_order=first_order)
    else:
        recompute = "sqrt" if engine == "recompute" else None
        sizes = {"inner_lr": setting.inner_lr, "inner_steps": setting.steps}
        algorithm = Algorithm(gradient=order, engine="vectorized", recompute=recompute, **sizes)
        keep_freed_memory()  # as the command that trains does
        precision = "bfloat16" if engine == "bfloat16" else "float32"
        backbone["name"] = "conv4"
        compile = engine in ("compiled", "bfloat16")
        learner = build_learner(algorithm, backbone, compile=compile, precision=precision)
    learner.to(device)
    return lambda: finished(lambda: learner.meta_gradient(tasks, setting.steps), device)


def finished(step: Callable[[], object], device: str) -> None:
    """Take `step` and wait for the device."""
    step()
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def serve(connection: Connection, engine: str, setting: Setting, order: str, device: str) -> None:
    """A worker: build the step and warm it up, then take one whenever asked; at the end report the peak memory."""
    before = peak_memory(device)  # of Python with PyTorch and learn2learn loaded
    try:
        start = time.perf_counter()
        step = make_step(engine, setting, order, device)
        step()
        connection.send({"ready_s": time.perf_counter() - start})
    except ImportError as error:
        connection.send({"skipped": str(error)})
        return
    step()
    while connection.recv():
        connection.send(common.milliseconds(step))
    connection.send((peak_memory(device), peak_memory(device) - before))


def peak_memory(device: str) -> float:
    """MiB: the peak of this process's resident memory, or of the GPU's allocations."""
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated() / 2**20
    status = Path("/proc/self/status")
    if status.exists():  # getrusage would count the parent, from which a process on Linux inherits its peak
        peak = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(peak.split()[1]) / 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def gigaflop(setting: Setting, order: str) -> float:
    """The floating-point work of learn2learn's loop, counted by torch on one task."""
    one = next(random_tasks(setting).chunks(1))
    learner = LoopMAML(
        Conv4(setting.ways, downsample=setting.downsample), lr=setting.inner_lr, first_order=order == "first"
    )
    with FlopCounterMode(display=False) as counter:
        learner.meta_gradient(one, setting.steps)
    return setting.tasks * counter.get_total_flops() / 1e9


def measure(name: str, order: str, engines: list[str], repeats: int, device: str) -> list[dict]:
    """One row an engine: ms per meta-iteration, speed-up over the loop, memory, GFLOP/s and share of the peak."""
    context, setting, workers = multiprocessing.get_context("spawn"), SETTINGS[name], {}
    for engine in engines:
        ours, theirs = context.Pipe()
        process = context.Process(target=serve, args=(theirs, engine, setting, order, device), daemon=True)
        process.start()
        theirs.close()
        answer = ours.recv()
        if "skipped" in answer:
            print(f"{name} {order}: {engine} skipped: {answer['skipped']}")
        else:
            workers[engine] = ours, answer["ready_s"]
    times: dict[str, list[float]] = {engine: [] for engine in workers}
    peaks = []
    for _ in range(repeats):
        peaks.append(common.matmul_peak(device))
        for engine, (connection, _) in workers.items():
            connection.send(True)
            times[engine].append(connection.recv())
    return _rows(name, order, workers, times, gigaflop(setting, order), statistics.median(peaks))


def _rows(name: str, order: str, workers: dict, times: dict, work: float, peak: float) -> list[dict]:
    rows = []
    loop = statistics.median(times["loop"])
    for engine, (connection, ready) in workers.items():
        connection.send(False)
        median = statistics.median(times[engine])
        row = {"setting": name, "order": order, "engine": engine, "ms": median, "speed_up": loop / median}
        peak_mib, added_mib = connection.recv()
        row |= {"peak_mib": peak_mib, "added_mib": added_mib, "gflop": work, "gflop_per_s": work / median * 1e3}
        row |= {"peak_gflop_per_s": peak, "peak_share": 100 * row["gflop_per_s"] / peak}
        rows.append(row | {"all_ms": times[engine], "first_call_s": ready})
    return rows


def as_cells(row: dict) -> list[str]:
    """A row of the printed table."""
    figures = [
        f"{row['ms']:.1f}",
        f"{row['speed_up']:.1f}x",
        f"{row['peak_mib']:.0f} ({row['added_mib']:.0f})",
        f"{row['gflop_per_s']:.0f}",
        f"{row['peak_share']:.0f} %",
    ]
    return [row["setting"], row["order"], row["engine"], *figures, f"{row['first_call_s']:.0f}"]


def plot(rows: list[dict], path: str, machine: str) -> None:
    """Speed-up over learn2learn's loop: a group of bars for each setting and order."""
    from matplotlib.figure import Figure

    groups = list(dict.fromkeys((row["setting"], row["order"]) for row in rows))
    engines = [engine for engine in ENGINES if any(row["engine"] == engine for row in rows)]
    figure = Figure(figsize=(2.0 + 1.0 * len(groups), 4.2), layout="constrained")
    axes = figure.subplots()
    width = 0.84 / len(engines)
    for index, engine in enumerate(engines):
        found = [row for row in rows if row["engine"] == engine]
        places = [groups.index((row["setting"], row["order"])) + (index + 0.5) * width - 0.42 for row in found]
        bars = axes.bar(places, [row["speed_up"] for row in found], width, label=engine)
        axes.bar_label(bars, fmt="%.1f", fontsize=6.5)
    axes.axhline(1, color="black", linewidth=0.8)
    axes.set_xticks(
        range(len(groups)),
        [f"{setting}\n{order} order".replace("_max_pool", "\nmax-pooling") for setting, order in groups],
    )
    axes.set(ylabel="speed-up over learn2learn's loop", title=machine)
    axes.title.set_fontsize(8)
    figure.legend(loc="outside lower center", ncols=len(engines), fontsize=8, frameon=False)
    figure.savefig(path, dpi=150)


def main() -> None:
    """Measure, print, write."""
    parser: argparse.ArgumentParser = common.parser("One meta-gradient by each engine and by other packages.")
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--orders", nargs="+", choices=["second", "first"], default=["second", "first"])
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=list(ENGINES))
    parser.add_argument("--repeats", type=int, default=9, help="turns (default: 9)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    arguments = parser.parse_args()
    engines = ["loop", *(engine for engine in arguments.engines if engine != "loop")]
    found, rows = machine(), []
    print(describe(found))
    header = ["setting", "order", "engine", "ms", "speed-up", "MiB", "GFLOP/s", "of peak", "first call (s)"]
    for name in arguments.settings:
        for order in arguments.orders:
            measured = measure(name, order, engines, arguments.repeats, arguments.device)
            print(common.table(header, [as_cells(row) for row in measured]), flush=True)
            rows += measured
            common.write_json(arguments.json, {"machine": found, "rows": rows})
    if arguments.plot:
        plot(rows, arguments.plot, describe(found))


if __name__ == "__main__":
    main()
