"""Memory and time of one second-order meta-gradient against the number of inner steps, by each engine and package.

    python -m benchmarks.inner_steps [--steps 1 10 100] [--limit_mib 1024] [--limit_s 30] [--json FILE] [--plot FILE]

Each engine at each number of steps works in a process of its own, so that its peak memory is its own. An engine that
passed a limit is not asked for more steps. MiB is what the process's peak (on a GPU: that of its allocations) grew by
from before the network was made, so that compiling is in it. Times are medians after a first meta-gradient, which may
have compiling in it. Engines are named as in `benchmarks.engines`.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
from collections.abc import Iterator
from multiprocessing.connection import Connection

from benchmarks import common, engines
from maml_l2l.system.machine import describe, machine

STEPS = (1, 2, 5, 10, 20, 50, 100, 200)
ENGINES = ("loop", "higher", "torchopt", "parallel-metalearn", "vectorized", "compiled", "recompute")
_ENOUGH_MS = 3000  # of measuring, where fewer than `--repeats` meta-gradients take as long


def serve(connection: Connection, engine: str, setting: engines.Setting, repeats: int, device: str) -> None:
    """A process: take meta-gradients; send their time and the peak memory, or why there is none."""
    before = engines.peak_memory(device)
    try:
        step = engines.make_step(engine, setting, "second", device)
    except ImportError as error:
        connection.send({"skipped": str(error)})
        return
    first = common.milliseconds(step)
    times = [first] if first > _ENOUGH_MS and engine != "compiled" else []
    while len(times) < repeats and sum(times) < _ENOUGH_MS:
        times.append(common.milliseconds(step))
    peak = engines.peak_memory(device)
    found = {"ms": statistics.median(times), "peak_mib": peak, "added_mib": peak - before}
    connection.send(found | {"all_ms": times, "first_call_s": first / 1e3})


def measured(engine: str, setting: engines.Setting, repeats: int, device: str) -> dict:
    """What `serve` sends from a process of its own."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=serve, args=(theirs, engine, setting, repeats, device))
    process.start()
    theirs.close()
    try:
        return ours.recv()
    except EOFError:
        return {"skipped": "the process ended without an answer, perhaps out of memory"}
    finally:
        process.join()


def rows_of(engine: str, setting: engines.Setting, options: argparse.Namespace) -> Iterator[dict]:
    """A row for each number of steps, up to the first one that passes a limit."""
    for steps in options.steps:
        found = measured(engine, setting._replace(steps=steps), options.repeats, options.device)
        if "skipped" in found:
            print(f"{engine}, {steps} steps: skipped: {found['skipped']}", flush=True)
            return
        over = found["added_mib"] > options.limit_mib or found["ms"] > 1e3 * options.limit_s
        yield {"engine": engine, "steps": steps, "over_limit": over, **found}
        if over:
            return


def cells(rows: list[dict], steps: list[int], key: str, form: str) -> list[list[str]]:
    """Rows of a printed table: an engine, then `key` for each of `steps`, with a star where it passed a limit."""
    found = {(row["engine"], row["steps"]): form.format(row[key]) + "*" * row["over_limit"] for row in rows}
    names = dict.fromkeys(row["engine"] for row in rows)
    return [[name, *(found.get((name, k), "") for k in steps)] for name in names]


def plot(rows: list[dict], path: str, title: str, limit_mib: float) -> None:
    """Memory and time against the number of steps."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.6, 4.0), layout="constrained")
    memory, time = figure.subplots(1, 2)
    for engine in dict.fromkeys(row["engine"] for row in rows):
        found = [row for row in rows if row["engine"] == engine]
        ours = engine in ("vectorized", "compiled", "recompute")
        style = {
            "marker": "o",
            "markersize": 3.5,
            "linewidth": 2.4 if ours else 1.2,
            "linestyle": "-" if ours else "--",
        }
        steps = [row["steps"] for row in found]
        memory.plot(steps, [row["added_mib"] for row in found], label=engine, **style)
        time.plot(steps, [row["ms"] / 1e3 for row in found], **style)
    if any(row["added_mib"] > limit_mib for row in rows):
        memory.axhline(limit_mib, color="black", linewidth=0.8, linestyle=":", label="limit")
    memory.set(xlabel="inner steps", ylabel="MiB added by a meta-gradient", ylim=(0, None))
    time.set(xlabel="inner steps", ylabel="seconds per meta-gradient", ylim=(0, None))
    figure.suptitle(title, fontsize=8)
    figure.legend(loc="outside lower center", ncols=8, fontsize=8, frameon=False)
    figure.savefig(path, dpi=150)


def main() -> None:
    """Measure, print, write."""
    parser = common.parser("Memory and time of one second-order meta-gradient against the number of inner steps.")
    parser.add_argument("--steps", nargs="+", type=int, default=list(STEPS), help="numbers of inner steps, rising")
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=list(ENGINES))
    parser.add_argument("--setting", choices=engines.SETTINGS, default="5w1s", help="see benchmarks.engines")
    parser.add_argument("--tasks", type=int, default=4, help="tasks of a meta-gradient (default: 4)")
    parser.add_argument("--limit_mib", type=float, default=1024, help="MiB that end an engine's row (default: 1024)")
    parser.add_argument("--limit_s", type=float, default=30, help="seconds that end an engine's row (default: 30)")
    parser.add_argument("--repeats", type=int, default=5, help="most meta-gradients to time (default: 5)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    parser.add_argument("--note", help="a remark to write into the JSON, such as what else ran")
    options = parser.parse_args()
    setting, machine_, rows = engines.SETTINGS[options.setting]._replace(tasks=options.tasks), machine(), []
    print(describe(machine_))
    content = {"machine": machine_, "note": options.note, "setting": setting._asdict() | {"steps": options.steps}}
    content |= {"limit_mib": options.limit_mib, "limit_s": options.limit_s, "device": options.device}
    for engine in options.engines:
        rows += rows_of(engine, setting, options)
        common.write_json(options.json, {**content, "rows": rows})
    for what, key, form in (("MiB", "added_mib", "{:.0f}"), ("ms", "ms", "{:.0f}")):
        print(common.table([what, *options.steps], cells(rows, options.steps, key, form)), flush=True)
    if options.plot and rows:
        tasks = "1 task" if options.tasks == 1 else f"{options.tasks} tasks"
        title = f"{options.setting}, {tasks}, second order; {describe(machine_)}"
        plot(rows, options.plot, title, options.limit_mib)


if __name__ == "__main__":
    main()
