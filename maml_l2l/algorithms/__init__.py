"""MAML engines: subclasses of learn2learn's `MAML` that take batches of tasks."""

from __future__ import annotations

import fnmatch
from typing import Any

import torch

from maml_l2l.algorithms.checks import has_linear_head
from maml_l2l.algorithms.loop import LoopMAML
from maml_l2l.algorithms.meta_learner import MetaLearner
from maml_l2l.algorithms.transforms import TRANSFORMS, named_transform
from maml_l2l.algorithms.vectorized import VectorizedMAML
from maml_l2l.backbones import Conv4, build_backbone
from maml_l2l.config import Algorithm
from maml_l2l.system.errors import UserError, listing

__all__ = ["ENGINES", "LoopMAML", "MetaLearner", "VectorizedMAML", "build_learner"]

ENGINES = {"vectorized": VectorizedMAML, "loop": LoopMAML}

_LOOP_STEPS = 10  # the loop keeps the activations of all of them
_HEAD = "Give its last layer that name, or leave the key out."


def build_learner(
    algorithm: Algorithm,
    backbone: dict[str, Any],
    compile: bool = False,
    precision: str = "float32",
    device: torch.device | str = "cpu",
) -> MetaLearner:
    """The engine that `algorithm` names around a fresh network of `backbone`, the arguments of `build_backbone`.

    compile: compile the meta-gradient, where the engine can.  precision: see the config key `run.precision`.
    device: where the learner is going to work.
    """
    network = build_backbone(backbone)
    _check_head(algorithm, network)
    name = algorithm.engine
    if name == "auto":
        loop = not compile and precision == "float32" and _loop_is_faster(algorithm, network, torch.device(device))
        name = "loop" if loop else "vectorized"
    engine = ENGINES[name]
    if isinstance(network, Conv4) and precision == "bfloat16":
        network.product_dtype = torch.bfloat16
    learner = engine(network, lr=algorithm.inner_lr, first_order=algorithm.gradient == "first")
    learner.task_chunk, learner.prototype_head = algorithm.task_chunk, algorithm.head == "prototype"
    learner.adapted = _patterns(algorithm.adapt, network)
    if isinstance(learner, VectorizedMAML):
        learner.compiled, learner.recompute = compile, algorithm.recompute is not None
        learner.gradient = "second" if algorithm.gradient == "first" else algorithm.gradient  # and first_order
        learner.proximal, learner.cg_steps = algorithm.proximal, algorithm.cg_steps
    if algorithm.learn_inner_lr:
        learner.learn_inner_lrs(algorithm.inner_steps)
    if algorithm.norm_per_step:
        learner.learn_norms(algorithm.inner_steps)
    if algorithm.update in TRANSFORMS:
        learner.learn_transform(named_transform(algorithm.update, network), linear=True)
    if algorithm.inner_steps > 0 and not learner.adapted_names():
        raise UserError(
            f"algorithm.adapt: found {algorithm.adapt}, so the inner loop would adapt nothing (of normalisations it "
            "adapts none under algorithm.norm_per_step). Name other parameters."
        )
    return learner


def _loop_is_faster(algorithm: Algorithm, network: torch.nn.Module, device: torch.device) -> bool:
    """Whether learn2learn's loop does uncompiled what `algorithm` asks for, and sooner, at little memory.

    PyTorch's convolutions take a network on a CPU in less time than products of matrices over all tasks, as
    `benchmarks.engines` measures, but for the smallest tasks. Everywhere else the loop's many small calls are slow.
    """
    convolves = any(isinstance(part, (torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Conv3d)) for part in network.modules())
    exact = algorithm.gradient in ("second", "first") and algorithm.recompute is None
    return device.type == "cpu" and convolves and exact and algorithm.inner_steps <= _LOOP_STEPS


def _check_head(algorithm: Algorithm, network: torch.nn.Module) -> None:
    """Raise `UserError` where `algorithm` makes the head of prototypes, and the network's is none that they can be."""
    if algorithm.head == "prototype" and not has_linear_head(network):
        raise UserError(
            "algorithm.head: prototype is for networks that end in a linear layer `head` with a bias, and "
            f"{_kind(network)} has none. {_HEAD}"
        )


def _kind(network: torch.nn.Module) -> str:
    return f"this network ({type(network).__name__})"


def _patterns(adapt: str | list[str], network: torch.nn.Module) -> list[str]:
    """`MetaLearner.adapted` for `algorithm.adapt`. Raises `UserError` where a pattern fits no parameter."""
    names = [name for name, _ in network.named_parameters()]
    if adapt == "body":
        body = [name for name in names if not name.startswith("head.")]
        if body == names:
            raise UserError(
                f"algorithm.adapt: body is all but the layer `head`, and {_kind(network)} has none. {_HEAD}"
            )
        return body
    patterns = {"all": ["*"], "head": ["head.*"]}[adapt] if isinstance(adapt, str) else adapt
    for pattern in patterns:
        if not fnmatch.filter(names, pattern):
            raise UserError(f"algorithm.adapt: no parameter is called {pattern!r}. There are: {listing(names)}.")
    return patterns
