"""The networks that the page offers: found once, when it starts."""

from __future__ import annotations

import heapq
import logging
import os
from dataclasses import dataclass
from pathlib import Path

from maml_l2l.checkpoints.checkpoint import load_pretrained
from maml_l2l.config import MAX_WAYS
from maml_l2l.pretrained import find_checkpoint, library_network, pretrained_files
from maml_l2l.system.errors import UserError, printable

_log = logging.getLogger(__name__)
_MOST_RUNS = 20


@dataclass(frozen=True)
class Network:
    """A checkpoint, by what `load_pretrained` takes, and what a person should know of it.

    ways: the most classes that it tells apart, None: any number.  steps: its inner steps.
    drawings: whether it sees pictures as ink on paper.  prototype: whether its head starts as the class prototypes.
    """

    source: str | Path
    ways: int | None
    steps: int
    drawings: bool
    prototype: bool


def find_networks(chosen: str, runs: Path = Path("runs")) -> dict[str, Network]:
    """By the name that the page shows: the checkpoint `chosen`, then the pretrained ones, then the newest of `runs`.

    chosen: what `load_pretrained` takes. Raises `UserError` where it cannot be used; of the others,
    such are left out, with a warning.
    """
    source = chosen if library_network(chosen) else find_checkpoint(chosen)
    pretrained: dict[str | Path, str] = {file: file.stem for file in pretrained_files().values()}
    found = {pretrained.get(source, printable(chosen)): _network(source)}
    newest = heapq.nlargest(_MOST_RUNS, runs.glob("*/best.pth"), key=os.path.getmtime)
    others = pretrained | {file: printable(str(file)) for file in newest if not _same(file, Path(source))}
    for file, name in others.items():
        if name not in found:
            try:
                found[name] = _network(file)
            except UserError as error:
                _log.warning(f"the page does without {file}: {error}")
    return found


def _same(one: Path, other: Path) -> bool:
    return one.resolve() == other.resolve()


def _network(source: str | Path) -> Network:
    checkpoint = load_pretrained(source)
    experiment = checkpoint.experiment
    prototype = experiment.algorithm.head == "prototype"
    ways = None if checkpoint.serves(MAX_WAYS) else checkpoint.backbone["ways"]
    checkpoint.learner()  # a network of a person's own is known only where it was registered
    return Network(source, ways, experiment.algorithm.inner_steps, experiment.data.holds_drawings, prototype)
