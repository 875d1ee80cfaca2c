"""Self-describing `.pth` checkpoints: written atomically, loaded without running code."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from maml_l2l.algorithms import MetaLearner, build_learner
from maml_l2l.config import Experiment, parse_experiment
from maml_l2l.data.splits import ClassSplit
from maml_l2l.errors import UserError
from maml_l2l.files import write_atomically

FORMAT = "maml_l2l checkpoint"
VERSION = 1
_REMEDY = "Give the path of a `.pth` file that training wrote."


@dataclass(frozen=True)
class Checkpoint:
    """All that evaluation and resuming need.

    config: the resolved experiment, as nested dictionaries.       split: class names of train, val and test.
    iteration: meta-iterations done.                                validation_accuracy: percent, None before the first.
    backbone: keyword arguments of `maml_l2l.backbones.Conv4`.      weights: its state dict.
    optimizer: the outer loop's state dict, None in `best.pth`.
    """

    config: dict
    split: ClassSplit
    iteration: int
    validation_accuracy: float | None
    backbone: dict
    weights: dict
    optimizer: dict | None

    @property
    def experiment(self) -> Experiment:
        """The validated configuration."""
        return parse_experiment(self.config, origin="the checkpoint's config")

    def check_ways(self, ways: int) -> None:
        """Raise `UserError` where the head has fewer outputs than a task of `ways` classes needs."""
        head = self.backbone["ways"]
        if ways > head:
            raise UserError(
                f"the checkpoint's head has {head} outputs, so it serves tasks of up to {head} classes, not of {ways}. "
                f"Use fewer classes, or train with task.ways={ways}."
            )

    def learner(self) -> MetaLearner:
        """The engine that the config names, with these weights."""
        learner = build_learner(self.experiment.algorithm, self.backbone)
        learner.module.load_state_dict(self.weights)
        return learner


def save_checkpoint(checkpoint: Checkpoint, path: Path) -> None:
    """Write `checkpoint` to `path`, which holds a whole checkpoint or its old contents whatever interrupts this."""
    content = {"format": FORMAT, "version": VERSION, **vars(checkpoint)}
    write_atomically(path, lambda file: torch.save(content, file))


def load_checkpoint(path: str | Path) -> Checkpoint:
    """Read a checkpoint onto the CPU, with `weights_only=True`. Raises `UserError` where `path` holds none."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"there is no checkpoint {path}. {_REMEDY}") from None
    except Exception:  # damaged bytes make the unpickler raise almost anything
        raise UserError(f"{path} is not a checkpoint, or is damaged. {_REMEDY}") from None
    if not isinstance(content, dict) or content.pop("format", None) != FORMAT:
        raise UserError(f"{path} is not a checkpoint of maml_l2l. {_REMEDY}")
    version = content.pop("version", None)
    if version != VERSION:
        raise UserError(
            f"{path} has checkpoint version {version}, this maml_l2l reads version {VERSION}. Upgrade maml_l2l."
        )
    return Checkpoint(**content)
