"""MAML engines: subclasses of learn2learn's `MAML` that take batches of tasks."""

from __future__ import annotations

import torch

from maml_l2l.algorithms.loop import LoopMAML
from maml_l2l.algorithms.meta_learner import MetaLearner
from maml_l2l.algorithms.vectorized import VectorizedMAML
from maml_l2l.backbones import Conv4
from maml_l2l.config import Algorithm, Model

ENGINES = {"vectorized": VectorizedMAML, "loop": LoopMAML}


def backbone_arguments(model: Model, ways: int, channels: int) -> dict:
    """The keyword arguments of `Conv4` that the `model` section, the head's ways and the images' channels give."""
    return {"ways": ways, "channels": channels, "filters": model.filters, "downsample": model.downsample}


def build_learner(
    algorithm: Algorithm, backbone: dict, compile: bool = False, precision: str = "float32"
) -> MetaLearner:
    """The engine that `algorithm` names around a freshly initialised `Conv4(**backbone)`.

    compile: compile the meta-gradient, where the engine can.  precision: see the config key `run.precision`.
    """
    engine = ENGINES[algorithm.engine]
    network = Conv4(**backbone)
    if precision == "bfloat16":
        network.product_dtype = torch.bfloat16
    learner = engine(network, lr=algorithm.inner_lr, first_order=algorithm.order == "first")
    learner.task_chunk, learner.compile = algorithm.task_chunk, compile
    if algorithm.learn_inner_lr:
        learner.learn_inner_lrs(algorithm.inner_steps)
    return learner
