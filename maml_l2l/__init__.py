"""Few-shot image classification with MAML, on PyTorch and learn2learn.

The public names below load what they need, PyTorch and learn2learn among it, when they are first used.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # what type checkers and editors read; Python reads `_ROOM_OF`
    from maml_l2l.algorithms.loop import LoopMAML
    from maml_l2l.algorithms.vectorized import VectorizedMAML
    from maml_l2l.backbones import register_backbone
    from maml_l2l.checkpoints.checkpoint import load_checkpoint, load_pretrained, save_checkpoint
    from maml_l2l.config import load_experiment
    from maml_l2l.experiments.evaluation import evaluate
    from maml_l2l.experiments.training import train
    from maml_l2l.prediction import FewShotClassifier
    from maml_l2l.tasks.batch import TaskBatch
    from maml_l2l.tasks.stream import TaskStream

__version__ = "0.1.0"

__all__ = [
    "FewShotClassifier",
    "LoopMAML",
    "TaskBatch",
    "TaskStream",
    "VectorizedMAML",
    "__version__",
    "evaluate",
    "load_checkpoint",
    "load_experiment",
    "load_pretrained",
    "register_backbone",
    "save_checkpoint",
    "train",
]

_ROOM_OF = {
    "FewShotClassifier": "maml_l2l.prediction",
    "LoopMAML": "maml_l2l.algorithms.loop",
    "TaskBatch": "maml_l2l.tasks.batch",
    "TaskStream": "maml_l2l.tasks.stream",
    "VectorizedMAML": "maml_l2l.algorithms.vectorized",
    "evaluate": "maml_l2l.experiments.evaluation",
    "load_checkpoint": "maml_l2l.checkpoints.checkpoint",
    "load_experiment": "maml_l2l.config",
    "load_pretrained": "maml_l2l.checkpoints.checkpoint",
    "register_backbone": "maml_l2l.backbones",
    "save_checkpoint": "maml_l2l.checkpoints.checkpoint",
    "train": "maml_l2l.experiments.training",
}


def __getattr__(name: str) -> Any:
    if name not in _ROOM_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_ROOM_OF[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _Package(ModuleType):
    """A package in which `train` stays the function, whoever imports the command's module `maml_l2l.train`.

    Python binds a submodule, once it is imported, as an attribute of its package, and would hide the public name.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _ROOM_OF and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
