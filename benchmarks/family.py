"""What each member of the MAML family, and each piece of MAML++, is worth: all trained alike and compared.

    python -m benchmarks.family --config configs/omniglot_20w1s.yaml [--set KEY=VALUE ...] [--members NAME ...]

Every member trains on the same tasks from the same seeds, with nothing else than its own keys changed, and is measured
on validation classes: these figures decide what the next trainings use, and test classes are used once. A row is
written as soon as its run has ended; started again, the benchmark goes on where it stopped, within a run too.
"""

from __future__ import annotations

import itertools
import multiprocessing
import statistics
import textwrap
from pathlib import Path

from benchmarks import common, meta_gradients, omniglot_runs
from maml_l2l import commands
from maml_l2l.checkpoints.checkpoint import load_checkpoint
from maml_l2l.config import Experiment, load_experiment, with_overrides
from maml_l2l.experiments.evaluation import evaluate
from maml_l2l.experiments.resuming import holds_run
from maml_l2l.experiments.run_folder import BEST
from maml_l2l.experiments.training import train
from maml_l2l.system.errors import UserError
from maml_l2l.system.machine import describe, machine

PLAIN = ["algorithm.gradient=second", "algorithm.update=sgd", "algorithm.learn_inner_lr=false"]
_LSLR, _CURVATURE = "algorithm.update=lslr", "algorithm.update=meta_curvature"
_PLUS_PLUS = ["algorithm.multi_step_loss={third}", "algorithm.norm_per_step=true"]
MEMBERS: dict[str, list[str]] = {
    "MAML": [],
    "first order": ["algorithm.gradient=first"],
    "finite differences": ["algorithm.gradient=finite_difference"],
    "implicit": ["algorithm.gradient=implicit"],
    "Reptile": ["algorithm.gradient=reptile"],
    "learned step sizes": [_LSLR],
    "Meta-SGD": ["algorithm.update=meta_sgd"],
    "Meta-Curvature": [_CURVATURE],
    "Kronecker": ["algorithm.update=kronecker"],
    "head only (ANIL)": ["algorithm.adapt=head"],
    "body only (BOIL)": ["algorithm.adapt=body"],
    "prototype head": ["algorithm.head=prototype"],
    "multi-step loss": [_PLUS_PLUS[0]],
    "first order before second": ["algorithm.second_order_from={third}"],
    "norms per step": [_PLUS_PLUS[1]],
    "MAML++": [*_PLUS_PLUS, _LSLR],
    "Meta-Curvature, learned step sizes": [_CURVATURE, "algorithm.learn_inner_lr=true"],
    "Meta-Curvature and MAML++": [_CURVATURE, "algorithm.learn_inner_lr=true", *_PLUS_PLUS],
    "Meta-Curvature and prototype head": [_CURVATURE, "algorithm.learn_inner_lr=true", "algorithm.head=prototype"],
}


def experiment_of(member: str, seed: int, config: str, settings: list[str]) -> Experiment:
    """The run of a member: the config with its keys and `seed`; `{third}` is a third of the meta-iterations."""
    base = load_experiment(config, settings)
    third = max(1, base.train.iterations // 3)
    own = [setting.format(third=third) for setting in MEMBERS[member]]
    return load_experiment(config, [*PLAIN, *settings, *own, f"run.seed={seed}"])


def _run(experiment: Experiment, folder: Path) -> None:
    train(experiment, folder, resume=holds_run(folder), progress=True)


def row_of(member: str, seed: int, experiment: Experiment, folder: Path) -> dict:
    """Train, or finish, the run in `folder`, in a process of its own, and measure its best checkpoint."""
    process = multiprocessing.get_context("spawn").Process(target=_run, args=(experiment, folder))
    process.start()
    process.join()
    if process.exitcode:
        raise UserError(f"the training of {member} in {folder} ended with status {process.exitcode}. Start again.")
    best, steps = load_checkpoint(folder / BEST), experiment.algorithm.inner_steps
    row = {"member": member, "seed": seed, "iteration": best.iteration, "learned": learned_numbers(best.tensors)}
    sizes = {"eval.tasks": experiment.eval.tasks, "eval.steps": steps}
    for normalisation in ("batch", "support"):
        read = with_overrides(best.experiment, {**sizes, "algorithm.normalisation": normalisation}, "the benchmark")
        evaluation = evaluate(best, read, "val")
        row[normalisation] = {"accuracy": evaluation.mean()[steps], "ci95": evaluation.ci95()[steps]}
    return row | cost(experiment)


def cost(experiment: Experiment) -> dict:
    """`ms` of a meta-gradient, the mean over the training, and its `mib`, the most; see `meta_gradients.cost`."""
    changes = {experiment.algorithm.multi_step_loss, experiment.algorithm.second_order_from} - {None}
    starts = sorted({0, *changes})
    lengths = [end - start for start, end in itertools.pairwise([*starts, experiment.train.iterations])]
    costs = [meta_gradients.cost(experiment, start) for start in starts]
    total = sum(length * one["ms"] for length, one in zip(lengths, costs, strict=True))
    return {"ms": total / experiment.train.iterations, "mib": max(one["mib"] for one in costs)}


def learned_numbers(tensors: dict) -> int:
    """How many numbers training learned."""
    return sum(tensor.numel() for tensor in tensors.values())


def table(rows: list[dict]) -> str:
    """A line for each member: means over its seeds; the interval is that of one run's tasks, averaged."""
    lines, plain = [], {row["seed"]: row["learned"] for row in rows if row["member"] == "MAML"}
    for member in dict.fromkeys(row["member"] for row in rows):
        found = [row for row in rows if row["member"] == member]
        cells = [
            f"{statistics.mean(row[key]['accuracy'] for row in found):.2f} ± "
            f"{statistics.mean(row[key]['ci95'] for row in found):.2f}"
            for key in ("batch", "support")
        ]
        apart = max(row["batch"]["accuracy"] for row in found) - min(row["batch"]["accuracy"] for row in found)
        added = [row["learned"] - plain[row["seed"]] for row in found if row["seed"] in plain]
        costs = [f"{statistics.median(row[key] for row in found):.0f}" for key in ("ms", "mib")]
        spread = f"{apart:.2f}" if len(found) > 1 else ""
        lines.append([member, *cells, len(found), spread, *costs, added[0] if added else ""])
    header = ["member", "accuracy (%)", "inductive (%)", "seeds", "apart", "ms", "MiB", "numbers added"]
    return common.table(header, lines)


def plot(rows: list[dict], path: str, title: str) -> None:
    """Accuracy of each member against its time, transductive and inductive."""
    from matplotlib.figure import Figure

    members = list(dict.fromkeys(row["member"] for row in rows))
    members.sort(key=lambda name: statistics.mean(row["batch"]["accuracy"] for row in rows if row["member"] == name))
    figure = Figure(figsize=(9, 0.32 * len(members) + 1.6), layout="constrained")
    axes = figure.subplots()
    for key, label, shift in (("batch", "transductive", 0.12), ("support", "inductive", -0.12)):
        places = [members.index(row["member"]) + shift for row in rows]
        values, errors = ([row[key][what] for row in rows] for what in ("accuracy", "ci95"))
        axes.errorbar(values, places, xerr=errors, fmt="o", markersize=4, capsize=2, label=label)
    axes.set_yticks(range(len(members)), members)
    axes.set(xlabel="accuracy on validation tasks (%), 95 % interval", title=textwrap.fill(title, 85))
    axes.title.set_fontsize(8)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=150)


def main() -> None:
    """Train what is missing, print the table, write."""
    parser = common.parser("What each member of the MAML family is worth, trained alike.")
    parser.add_argument("--config", metavar="FILE", required=True)
    parser.add_argument("--set", metavar="KEY=VALUE", nargs="+", action="extend", default=[])
    parser.add_argument("--members", nargs="+", choices=MEMBERS, metavar="NAME", default=list(MEMBERS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--runs", metavar="DIR", type=Path, default=Path("runs/family"), help="folder of the runs")
    options = parser.parse_args()
    settings = [setting for setting in options.set if setting.partition("=")[0] not in omniglot_runs.LOCAL]
    threads = load_experiment(options.config, options.set).run.threads
    found_machine = machine() | ({} if threads is None else {"threads": threads})
    content = {"machine": found_machine, "config": options.config, "set": settings, "rows": []}
    content = common.go_on(options.json, content, ("config", "set"))
    rows: list[dict] = content["rows"]
    wanted = [(member, seed) for seed in options.seeds for member in options.members]
    experiments = {one: experiment_of(*one, options.config, options.set) for one in wanted}  # what is refused is now
    for (member, seed), experiment in experiments.items():
        if any((row["member"], row["seed"]) == (member, seed) for row in rows):
            continue
        name = "".join(letter if letter.isalnum() else "_" for letter in member)
        rows.append(row_of(member, seed, experiment, options.runs / f"{name}_{seed}"))
        common.write_json(options.json, content)
        print(f"{member}, seed {seed}: {rows[-1]['batch']['accuracy']:.2f} %", flush=True)
    print(table(rows))
    if options.plot and rows:
        plot(rows, options.plot, f"{options.config} {' '.join(settings)}; {describe(content['machine'])}")


if __name__ == "__main__":
    commands.run(main)
