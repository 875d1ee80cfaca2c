"""Self-describing `.pth` checkpoints: written atomically, loaded without running code."""

from __future__ import annotations

import io
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

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
    best_accuracy: percent, the highest validation accuracy so far.  metrics_bytes: size of `metrics.jsonl` then.
    """

    config: dict
    split: ClassSplit
    iteration: int
    validation_accuracy: float | None
    backbone: dict
    weights: dict
    optimizer: dict | None
    best_accuracy: float | None = None
    metrics_bytes: int = 0

    @property
    def experiment(self) -> Experiment:
        """The validated configuration."""
        return parse_experiment(self.config, origin="the checkpoint's config")

    def learner(self) -> MetaLearner:
        """The engine that the config names, with these weights."""
        learner = build_learner(self.experiment.algorithm, self.backbone)
        learner.module.load_state_dict(self.weights)
        return learner


def save_checkpoint(checkpoint: Checkpoint, path: Path, previous: Path | None = None) -> None:
    """Write `checkpoint` to `path`, which holds a whole checkpoint or its old contents whatever interrupts this.

    previous: where the old contents are kept, see `write_atomically`.
    """
    content = {"format": FORMAT, "version": VERSION, **vars(checkpoint)}
    write_atomically(path, lambda file: _save(content, file), previous)


def _save(content: dict, file: BinaryIO) -> None:
    """`torch.save`, whose writer turns a full disk into a RuntimeError: here the file's own error comes out."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    file.write(buffer.getbuffer())


def load_checkpoint(path: str | Path) -> Checkpoint:
    """Read a checkpoint onto the CPU, with `weights_only=True`. Raises `UserError` where `path` holds none."""
    try:
        with zipfile.ZipFile(path) as file:
            damaged = file.testzip()  # PyTorch does not check the sums that it writes
        if damaged is not None:
            raise zipfile.BadZipFile(damaged)
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
