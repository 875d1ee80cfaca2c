"""On a GPU: the gradients, trained weights and predictions of a CPU. Skipped where there is none."""

import pytest
import torch

from maml_l2l.algorithms.loop import LoopMAML
from maml_l2l.algorithms.vectorized import VectorizedMAML
from maml_l2l.backbones import Conv4
from maml_l2l.checkpoints.checkpoint import load_checkpoint
from maml_l2l.config import load_experiment
from maml_l2l.experiments.evaluation import evaluate
from maml_l2l.experiments.training import train
from tests.test_engines import ORDERS, SETTINGS, gradient, random_tasks, relative_error
from tests.test_resume import same_state
from tests.test_training import TINY

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")
GPU = torch.device("cuda")


def pair(first_order, ways, dtype, compile_=False, downsample="stride"):
    """learn2learn's loop on the CPU in float64, and the vectorized engine on the GPU, with the same weights."""
    torch.manual_seed(0)
    options = {"ways": ways, "filters": 16, "downsample": downsample}
    loop = LoopMAML(Conv4(**options), lr=0.4, first_order=first_order)
    vectorized = VectorizedMAML(Conv4(**options), lr=0.4, first_order=first_order)
    vectorized.load_state_dict(loop.state_dict())
    vectorized.compiled = compile_
    return loop.double(), vectorized.to(GPU, dtype)


@SETTINGS
@ORDERS
@pytest.mark.parametrize("steps", [1, 5])
@pytest.mark.parametrize("downsample", ["stride", "max_pool"])
def test_gradients_are_those_of_the_loop_on_a_cpu(ways, shots, queries, first_order, steps, downsample):
    loop, vectorized = pair(first_order, ways, torch.float64, downsample=downsample)
    tasks = random_tasks(2, ways, shots, queries, side=14)
    expected, found = loop.meta_gradient(tasks, steps), vectorized.meta_gradient(tasks.to(GPU), steps)
    assert relative_error(gradient(vectorized).cpu(), gradient(loop)) < 1e-9
    torch.testing.assert_close(found.losses.cpu(), expected.losses, rtol=1e-9, atol=0)


@ORDERS
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-3)])
def test_compiled_gradients_are_too_in_every_chunk(first_order, dtype, tolerance):
    loop, vectorized = pair(first_order, 5, dtype, compile_=True)
    vectorized.task_chunk = 2
    for seed in range(3):
        tasks = random_tasks(7, 5, 1, 1, seed=seed)  # the seventh is a chunk of its own
        expected = loop.meta_gradient(tasks, 1)
        found = vectorized.meta_gradient(tasks.to(GPU, dtype), 1)
        assert vectorized._pieces.compiled, "it went on uncompiled"
        assert relative_error(gradient(vectorized).cpu(), gradient(loop)) < tolerance
        torch.testing.assert_close(found.losses.cpu().double(), expected.losses, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("compile_", ["false", "true"])
def test_a_resumed_run_ends_bit_for_bit_as_one_never_stopped(glyphs_root, tmp_path, compile_):
    overrides = [*TINY, f"data.root={glyphs_root}", "run.device=cuda", f"run.compile={compile_}"]
    for folder, lengths in (("straight", [12]), ("resumed", [5, 12])):
        for length in lengths:
            experiment = load_experiment(None, [*overrides, f"train.iterations={length}"])
            train(experiment, tmp_path / folder, resume=length > lengths[0])
    straight, resumed = (load_checkpoint(tmp_path / name / "last.pth") for name in ("straight", "resumed"))
    assert same_state(straight, resumed)


def test_an_evaluation_gives_the_figures_of_a_cpu(glyphs_root, tmp_path):
    overrides = [*TINY, f"data.root={glyphs_root}", "eval.tasks=60"]
    on = {name: load_experiment(None, [*overrides, f"run.device={name}"]) for name in ("cpu", "cuda")}
    train(on["cpu"], tmp_path / "run")
    checkpoint = load_checkpoint(tmp_path / "run" / "best.pth")
    on_cpu, on_gpu = (evaluate(checkpoint, on[name], "val") for name in ("cpu", "cuda"))
    torch.testing.assert_close(on_gpu.losses, on_cpu.losses, rtol=1e-3, atol=1e-4)
    assert (on_gpu.accuracies != on_cpu.accuracies).double().mean() < 0.02
