"""The published networks under every published protocol: `protocols.json`, and the table that it becomes."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from benchmarks import common, omniglot_runs
from benchmarks.omniglot_runs import CELLS, plus_minus, task_sizes
from maml_l2l.checkpoints.checkpoint import Checkpoint, load_checkpoint
from maml_l2l.config import PROTOCOLS, Experiment, under_protocol
from maml_l2l.experiments.evaluation import evaluate, on_this_machine
from maml_l2l.reports.tables import evaluation_json, evaluation_protocol
from maml_l2l.system.errors import UserError
from maml_l2l.system.files import write_json

LAKE_CELL = "20w1s"  # the only one that the protocol of Lake et al. has
_READINGS = ("batch", "support")  # transductive, inductive


class Measurement(NamedTuple):
    """One line of the file: a network on the tasks of a cell, by a protocol, with one reading of normalisation."""

    network: str
    protocol: str
    cell: str
    normalisation: str

    @property
    def key(self) -> str:
        """Its name in the file."""
        return "/".join(self)

    def experiment(self, checkpoint: Checkpoint, root: str | None) -> Experiment:
        """What is evaluated, on the data in `root`; None: where the checkpoint's were."""
        sizes = {} if self.protocol == "lake" else task_sizes(self.cell) | {"task.queries": None}
        asked = sizes | {"algorithm.normalisation": self.normalisation, "data.root": root}
        asked["eval.steps"] = checkpoint.experiment.algorithm.inner_steps
        return under_protocol(on_this_machine(checkpoint.experiment), self.protocol, asked, "the benchmark")


def file() -> Path:
    """Where the figures are kept."""
    return omniglot_runs.RESULTS / "protocols.json"


def load() -> dict[str, dict]:
    """The figures by `Measurement.key`; none where nothing was measured yet."""
    return json.loads(file().read_text()) if file().exists() else {}


def measurements(networks: Sequence[str], protocols: Sequence[str], cells: Sequence[str]) -> Iterator[Measurement]:
    """All combinations that there are."""
    for network in networks:
        for protocol in protocols:
            for cell in cells if protocol != "lake" else set(cells) & {LAKE_CELL}:
                for normalisation in _READINGS:
                    yield Measurement(network, protocol, cell, normalisation)


def measure(
    networks: Sequence[str] = (),
    protocols: Sequence[str] = tuple(PROTOCOLS),
    cells: Sequence[str] = tuple(CELLS),
    root: str | None = None,
) -> None:
    """Evaluate the networks in `pretrained/` (all, or those named) and write each figure as soon as it is there.

    What the file holds of the same network is not measured again, so the command goes on where it was stopped. Small
    evaluations come first. A network whose head has fewer outputs than a cell has ways is left out there.
    Raises `UserError` where there is no such network.
    """
    paths = {path.stem: path for path in sorted(omniglot_runs.PRETRAINED.glob("*.pth"))}
    if unknown := [name for name in networks if name not in paths]:
        raise UserError(f"there is no pretrained network {unknown[0]}. Name some of {', '.join(paths)}.")
    checkpoints = {name: load_checkpoint(paths[name]) for name in networks or paths}
    sums = {name: hashlib.sha256(paths[name].read_bytes()).hexdigest() for name in checkpoints}
    found, waiting = load(), []
    for one in measurements(list(checkpoints), protocols, cells):
        experiment = one.experiment(checkpoints[one.network], root)
        if _serves(checkpoints[one.network], experiment) and found.get(one.key, {}).get("sha256") != sums[one.network]:
            waiting.append((_images(experiment), one, experiment))
    for number, (_, one, experiment) in enumerate(sorted(waiting, key=lambda part: part[0]), start=1):
        start = time.perf_counter()
        evaluation = evaluate(checkpoints[one.network], experiment, protocol=one.protocol)
        content = evaluation_json(evaluation, evaluation_protocol(experiment, "test", one.protocol))
        seconds = round(time.perf_counter() - start, 1)
        found[one.key] = content | {"sha256": sums[one.network], "seconds": seconds}
        write_json(file(), dict(sorted(found.items())))
        print(f"{number} of {len(waiting)}: {one.key}: {plus_minus(accuracy(found[one.key]))} % in {seconds} s")


def accuracy(content: dict) -> dict:
    """Mean and interval after the inner steps of the training, the last that were measured."""
    return content["accuracy"][max(content["accuracy"], key=int)]


def _serves(checkpoint: Checkpoint, experiment: Experiment) -> bool:
    try:
        checkpoint.check_ways(experiment.task.ways)
    except UserError:
        return False
    return True


def _images(experiment: Experiment) -> int:
    task = experiment.task
    return experiment.eval.tasks * task.ways * (task.shots + task.queries)


def table(found: dict[str, dict]) -> str:
    """Per protocol and cell the named network's accuracy, transductive / inductive; `drawings` under `lake` beside it.

    What is empty has not been measured.
    """
    rows = [[f"`{name}`", *(_both(found, _named(cell), name, cell) for cell in CELLS)] for name in PROTOCOLS]
    rows.append(["`lake`, `drawings`", *(_both(found, "drawings", "lake", cell) for cell in CELLS)])
    return common.table(["protocol", *CELLS.values()], rows)


def seen(found: dict[str, dict]) -> str:
    """How many classes of `lake` trained the named network of its cell: `449 of 659`; where unmeasured: `a part`."""
    content = found.get(Measurement(_named(LAKE_CELL), "lake", LAKE_CELL, "batch").key)
    return "a part" if content is None else f"{content['seen_classes']} of {content['classes']}"


def _named(cell: str) -> str:
    """The network that `names.json` names for a cell: the one that scored best on validation tasks."""
    path = omniglot_runs.PRETRAINED / "names.json"
    names = json.loads(path.read_text()) if path.exists() else {}
    return Path(names.get(f"omniglot_{cell}", "")).stem


def _both(found: dict[str, dict], network: str, protocol: str, cell: str) -> str:
    keys = [Measurement(network, protocol, cell, normalisation).key for normalisation in _READINGS]
    figures = [plus_minus(accuracy(found[key])) for key in keys if key in found]
    return " / ".join(figures) if len(figures) == len(keys) else ""
