"""`algorithm.engine: auto`: which engine it is, and that a checkpoint works with either."""

import dataclasses
import logging

import pytest
import torch

import maml_l2l
from maml_l2l.algorithms import LoopMAML, VectorizedMAML, build_learner
from maml_l2l.checkpoints.checkpoint import load_checkpoint
from maml_l2l.config import Algorithm, Experiment, load_experiment, with_overrides
from maml_l2l.experiments import worth_compiling
from maml_l2l.experiments.evaluation import on_this_machine
from maml_l2l.experiments.worth_compiling import evaluation_compiles, training_precision
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
        (CONV4, {"engine": "vectorized", "gradient": "first"}, {}, VectorizedMAML),
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


@pytest.fixture(scope="module")
def trained(glyphs_root, tmp_path_factory):
    folder = tmp_path_factory.mktemp("compiling") / "run"
    settings = ["train.iterations=1", "train.meta_batch=2", f"data.root={glyphs_root}"]
    maml_l2l.train(load_experiment(None, [*TINY, *settings]), folder)
    checkpoint = load_checkpoint(folder / "last.pth")
    run = checkpoint.config["run"] | {"compile": True}
    return dataclasses.replace(checkpoint, config=checkpoint.config | {"run": run})


def evaluation_of(checkpoint, **settings):
    sizes = {"task.ways": 3, "task.shots": 2, "task.queries": 4, "eval.steps": 5, "eval.tasks": 100}
    own = on_this_machine(checkpoint.experiment)
    return with_overrides(own, sizes | {key.replace("__", "."): one for key, one in settings.items()}, "the test")


def test_an_evaluation_compiles_where_its_operations_are_many(trained, monkeypatch):
    multiplied = 14 * 14 * 9 * 8 + (7 * 7 + 4 * 4 + 2 * 2) * 9 * 8 * 8 + 8 * 3  # numbers, in one image's way through
    passes = 100 * 3 * (5 * 2 * 3 + 6 * 4)  # gradients of the support images, and queries after 0 to 5 steps
    for operations, expected in ((2 * multiplied * passes, True), (2 * multiplied * passes + 1, False)):
        monkeypatch.setattr(worth_compiling, "_OPERATIONS", operations)
        before = torch.get_rng_state()
        assert evaluation_compiles(trained, evaluation_of(trained), (1, 28, 28), torch.device("cpu")) is expected
        assert torch.equal(torch.get_rng_state(), before)
        monkeypatch.setattr(worth_compiling.distributed, "processes", lambda: 2)  # each has a half to do
        assert not evaluation_compiles(trained, evaluation_of(trained), (1, 28, 28), torch.device("cpu"))
        monkeypatch.undo()


@pytest.mark.parametrize(
    "settings, device, expected",
    [
        ({}, "cpu", True),
        ({}, "cuda", False),
        ({"algorithm__engine": "loop"}, "cpu", False),
        ({"run__compile": False}, "cpu", False),
        ({"run__compile": True}, "cuda", True),
    ],
)
def test_an_evaluation_compiles_where_it_is_known_to_pay(trained, settings, device, expected, monkeypatch):
    monkeypatch.setattr(worth_compiling, "_OPERATIONS", 1)
    experiment = evaluation_of(trained, **settings)
    assert evaluation_compiles(trained, experiment, (1, 28, 28), torch.device(device)) is expected
    algorithm = trained.config["algorithm"] | {"adapt": "head"}  # nothing of which is compiled
    alone = dataclasses.replace(trained, config=trained.config | {"algorithm": algorithm})
    asked = experiment.run.compile is True
    assert evaluation_compiles(alone, experiment, (1, 28, 28), torch.device(device)) is asked


@pytest.mark.parametrize(
    "settings, device, expected",
    [
        ({}, "cpu", "bfloat16"),
        ({"model": {"downsample": "max_pool"}, "algorithm": {"gradient": "first"}}, "cpu", "bfloat16"),
        ({"train": {"iterations": 499}}, "cpu", "float32"),  # too short to compile
        ({"algorithm": {"engine": "loop"}}, "cpu", "float32"),
        ({"algorithm": {"gradient": "finite_difference"}}, "cpu", "float32"),
        ({"model": {"name": "mlp"}}, "cpu", "float32"),
        ({}, "cuda", "float32"),
        ({"run": {"precision": "tf32"}}, "cpu", "tf32"),
    ],
)
def test_a_training_rounds_products_where_it_is_known_to_do_no_harm(settings, device, expected, monkeypatch):
    run = {"precision": "auto"} | settings.pop("run", {})
    experiment = Experiment(**{"train": {"iterations": 500}, "run": run} | settings)
    for processor, precision in ((True, expected), (False, "float32" if expected == "bfloat16" else expected)):
        monkeypatch.setattr(worth_compiling, "multiplies_bfloat16", lambda processor=processor: processor)
        assert training_precision(experiment, torch.device(device)) == precision


def test_a_training_says_which_precision_it_takes(glyphs_root, tmp_path, caplog):
    settings = ["train.iterations=1", "train.meta_batch=2", "run.precision=auto", f"data.root={glyphs_root}"]
    maml_l2l.train(load_experiment(None, [*TINY, *settings]), tmp_path / "run")
    assert "run.precision: auto takes float32" in caplog.text  # so short a training is not compiled


def test_an_evaluation_in_compiled_pieces_gives_the_same_figures_and_says_what_it_does(trained, monkeypatch, caplog):
    experiment = evaluation_of(trained, eval__tasks=6, task__shots=1)
    assert experiment.run.compile == "auto"  # that the training was to be compiled says nothing of an evaluation
    expected = maml_l2l.evaluate(trained, experiment)
    monkeypatch.setattr(worth_compiling, "_OPERATIONS", 1)
    monkeypatch.setattr(torch, "compile", lambda piece, **_: piece)  # tests/test_engines.py has what compiles
    with caplog.at_level(logging.INFO, "maml_l2l"):
        found = maml_l2l.evaluate(trained, experiment)
    torch.testing.assert_close(found.losses, expected.losses, rtol=1e-4, atol=1e-4)
    before, after = (record.getMessage() for record in caplog.records)
    assert before.startswith("compiling first, which takes a minute or two (run.compile: false does without)")
    assert after.startswith("compiled these pieces: outputs ") and ", step " in after
