"""How the published tables on Omniglot were measured, by name: what `eval --protocol NAME` sets."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from maml_l2l.config.experiment import Experiment
from maml_l2l.config.loading import with_overrides
from maml_l2l.system.errors import UserError, listing


@dataclass(frozen=True)
class Protocol:
    """What a published accuracy depends on beside the network.

    source: where it is published.
    settings: config keys and their values.  queries: per class; None: as many as shots.
    classes: what tasks draw their classes from: all of a split (`together`), the same with each class turned by 0, 90,
    180 and 270 degrees being four (`rotated`), or one alphabet for each task (`alphabet`).
    note: in which way an evaluation here may still be another.
    """

    source: str
    settings: dict[str, Any]
    queries: int | None = None
    classes: Literal["together", "rotated", "alphabet"] = "together"
    note: str = ""


PROTOCOLS = {
    "finn": Protocol(
        "Finn, Abbeel and Levine (2017)",
        {"data.rotate": True, "eval.tasks": 1000},
        note="the paper has 600 tasks",
    ),
    "mamlpp": Protocol(
        "Antoniou, Edwards and Storkey (2019), MAML++",
        {"data.rotate": False, "eval.tasks": 600},
        queries=1,
        note="the paper has the mean of the 5 best checkpoints: train with train.keep_best=5, name 4 as --ensemble",
    ),
    "prototypical": Protocol(
        "Snell, Swersky and Zemel (2017), prototypical networks",
        {"data.rotate": True, "eval.tasks": 1000},
        queries=15,
        classes="rotated",
    ),
    "reptile": Protocol(
        "Nichol, Achiam and Schulman (2018), Reptile",
        {"data.rotate": False, "eval.tasks": 10_000},
        queries=1,
    ),
    "lake": Protocol(
        "Lake, Salakhutdinov and Tenenbaum (2015)",
        {"data.rotate": False, "task.ways": 20, "task.shots": 1, "eval.tasks": 400},
        queries=1,
        classes="alphabet",
        note="the paper has 20 fixed runs of 20 trials, which are not among the data: these tasks are drawn alike",
    ),
}


def find_protocol(name: str) -> Protocol:
    """The protocol of that name. Raises `UserError`, which lists the names, where there is none."""
    if name not in PROTOCOLS:
        raise UserError(f"there is no protocol {name}. Name one of {listing(list(PROTOCOLS))}.")
    return PROTOCOLS[name]


def under_protocol(
    trained: Experiment, name: str | None, overrides: dict[str, Any], origin: str, settings: Iterable[str] = ()
) -> Experiment:
    """`trained` with the settings of the protocol `name`, where one is named, and with the overrides, which win.

    overrides, origin, settings: see `with_overrides`.
    """
    settings = list(settings)
    wanted = with_overrides(trained, overrides, origin, settings)
    if name is None:
        return wanted
    protocol = find_protocol(name)
    queries = {"task.queries": protocol.queries or wanted.task.shots}
    published = with_overrides(trained, protocol.settings | queries, f"the protocol {name}")
    return with_overrides(published, overrides, origin, settings)
