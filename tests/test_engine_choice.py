"""`algorithm.engine: auto`: which engine it is, and that a checkpoint works with either."""

import pytest
import torch

import maml_l2l
from maml_l2l.algorithms import LoopMAML, VectorizedMAML, build_learner
from maml_l2l.checkpoints.checkpoint import load_checkpoint
from maml_l2l.config import Algorithm, load_experiment, with_overrides
from maml_l2l.experiments.evaluation import on_this_machine
from tests.test_training import TINY

CONV4 = {"name": "conv4", "ways": 3, "channels": 1, "filters": 4, "downsample": "stride"}
MLP = {"name": "mlp", "ways": 3, "channels": 1, "image_size": 8}


@pytest.mark.parametrize(
    "network, keys, options, expected",
    [
        (CONV4, {}, {}, LoopMAML),
        (CONV4, {"gradient": "first", "inner_steps": 10}, {}, LoopMAML),
        (CONV4, {}, {"compile": True}, VectorizedMAML),
        (CONV4, {}, {"device": "cuda"}, VectorizedMAML),
        (CONV4, {}, {"device": "mps"}, VectorizedMAML),
        (CONV4, {}, {"precision": "bfloat16"}, VectorizedMAML),
        (CONV4, {"inner_steps": 11}, {}, VectorizedMAML),
        (CONV4, {"recompute": "sqrt"}, {}, VectorizedMAML),
        (CONV4, {"gradient": "implicit"}, {}, VectorizedMAML),
        (CONV4, {"gradient": "reptile"}, {}, VectorizedMAML),
        (CONV4, {"gradient": "finite_difference"}, {}, VectorizedMAML),
        (CONV4, {"engine": "vectorized"}, {}, VectorizedMAML),
        (MLP, {}, {}, VectorizedMAML),
        (MLP, {"engine": "loop"}, {"device": "cuda"}, LoopMAML),
    ],
)
def test_the_engine_that_is_taken(network, keys, options, expected):
    assert type(build_learner(Algorithm(**keys), network, **options)) is expected


@pytest.mark.parametrize("trained_by", ["auto", "vectorized", "loop"])
def test_a_checkpoint_names_no_engine_for_another_machine(trained_by, glyphs_root, tmp_path):
    settings = [
        "train.iterations=1",
        "train.meta_batch=2",
        "eval.tasks=4",
        "run.device=cpu",
        f"data.root={glyphs_root}",
    ]
    maml_l2l.train(load_experiment(None, [*TINY, *settings, f"algorithm.engine={trained_by}"]), tmp_path / "run")
    checkpoint = load_checkpoint(tmp_path / "run" / "last.pth")
    assert isinstance(checkpoint.learner(), LoopMAML)
    own = on_this_machine(checkpoint.experiment)
    assert own.algorithm.engine == ("loop" if trained_by == "loop" else "auto")
    losses = [
        maml_l2l.evaluate(checkpoint, with_overrides(own, {"algorithm.engine": engine}, "the test")).losses
        for engine in ("auto", "vectorized", "loop")
    ]
    assert torch.equal(losses[0], losses[2])
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-4, atol=1e-4)
