"""Where compiling the vectorized engine takes less time than it saves, and where rounding does."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.utils.flop_counter import FlopCounterMode

from maml_l2l.backbones import build_backbone
from maml_l2l.checkpoints.checkpoint import Checkpoint
from maml_l2l.config import Experiment
from maml_l2l.system import distributed
from maml_l2l.system.device import multiplies_bfloat16

_META_ITERATIONS = 500  # compiling takes the time of some hundred
# Floating-point operations. Two cores need two or three minutes for so many, and half of that compiled; compiling takes
# half a minute to two minutes the first time.
_OPERATIONS = 1e13


def training_compiles(experiment: Experiment, device: torch.device) -> bool:
    """Whether a training compiles: what `run.compile` says, or `auto` finds."""
    if experiment.run.compile != "auto":
        return experiment.run.compile
    return device.type != "mps" and experiment.train.iterations >= _META_ITERATIONS


def training_precision(experiment: Experiment, device: torch.device) -> str:
    """How a training rounds what it multiplies: what `run.precision` says, or `auto` finds."""
    wanted, algorithm = experiment.run.precision, experiment.algorithm
    if wanted != "auto":
        return wanted
    rounds = algorithm.engine != "loop" and algorithm.gradient != "finite_difference"  # which works in float64
    compiled_conv4 = experiment.model.name == "conv4" and training_compiles(experiment, device)
    fits = device.type == "cpu" and rounds and compiled_conv4 and multiplies_bfloat16()
    return "bfloat16" if fits else "float32"


def evaluation_compiles(
    network: Checkpoint, experiment: Experiment, image: Sequence[int], device: torch.device
) -> bool:
    """Whether an evaluation of `network` compiles: what `run.compile` says, or `auto` finds.

    On a CPU the loop is the alternative, and the faster one for networks that are not written for batches of tasks.
    Where only the head adapts there is nothing to compile.  image: the shape (C, H, W) of one.
    """
    if experiment.run.compile != "auto":
        return experiment.run.compile
    if device.type != "cpu" or experiment.algorithm.engine == "loop" or network.experiment.algorithm.adapt == "head":
        return False
    with torch.random.fork_rng(devices=[]):  # the fresh network's random weights are not kept
        module = build_backbone(network.backbone)
        if not hasattr(module, "forward_tasks"):
            return False
        return _operations(module, experiment, image) / distributed.processes() >= _OPERATIONS


def _operations(module: torch.nn.Module, experiment: Experiment, image: Sequence[int]) -> float:
    """Of all passes forwards; a gradient takes as many as three of them."""
    task, steps = experiment.task, experiment.eval.steps
    passes = experiment.eval.tasks * task.ways * (3 * steps * task.shots + (steps + 1) * task.queries)
    images = torch.zeros(2, *image)  # normalisation wants more than one
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        module(images)
    return passes * counter.get_total_flops() / len(images)
