"""Networks that draw random numbers: one inner step has one mask of dropout, on the way there and back."""

import copy
import itertools

import pytest
import torch
from torch import nn

from maml_l2l import load_experiment, register_backbone, train
from maml_l2l.algorithms import LoopMAML, VectorizedMAML
from maml_l2l.checkpoints.checkpoint import load_checkpoint
from maml_l2l.data.sources import class_split, load_data
from maml_l2l.experiments.trainer import MetaTrainer
from maml_l2l.tasks.batch import TaskBatch
from tests.test_engines import random_tasks
from tests.test_training import TINY

SIDE, WAYS = 7, 3


class Dropping(nn.Module):
    def __init__(self, ways=WAYS, image_size=SIDE):
        super().__init__()
        self.body, self.dropout = nn.Linear(image_size**2, 8), nn.Dropout(0.5)
        self.head = nn.Linear(8, ways)

    def forward(self, x):
        return self.head(self.dropout(self.body(x.flatten(1)).tanh()))


def learner(engine=VectorizedMAML, **settings):
    torch.manual_seed(0)
    made = engine(Dropping().double(), lr=0.3)
    for name, value in settings.items():
        setattr(made, name, value)
    return made


def loss(made, steps):
    """Of some tasks, always with the same draws."""
    torch.manual_seed(3)
    return made.meta_gradient(random_tasks(4, WAYS, 1, 1, side=SIDE), steps).losses.mean().item()


def along(made, direction, length):
    moved = copy.deepcopy(made)
    with torch.no_grad():
        for parameter, part in zip(moved.parameters(), direction, strict=True):
            parameter.add_(length * part)
    return moved


@pytest.mark.parametrize(
    ("engine", "settings"),
    [
        (LoopMAML, {}),
        (VectorizedMAML, {}),
        (VectorizedMAML, {"recompute": True}),
        (VectorizedMAML, {"prototype_head": True}),
        (VectorizedMAML, {"gradient": "finite_difference"}),
        (VectorizedMAML, {"task_chunk": 3}),
    ],
)
def test_the_gradient_is_that_of_the_loss_that_was_taken(engine, settings):
    steps = 4
    made = learner(engine, **settings)
    made.learn_inner_lrs(steps)
    loss(made, steps)
    found = [parameter.grad.clone() for parameter in made.parameters()]
    direction = [torch.randn_like(parameter) for parameter in made.parameters()]
    difference = (loss(along(made, direction, 1e-6), steps) - loss(along(made, direction, -1e-6), steps)) / 2e-6
    product = sum((one * other).sum() for one, other in zip(found, direction, strict=True)).item()
    assert difference == pytest.approx(product, rel=1e-4)


def test_steps_and_tasks_have_masks_of_their_own():
    """With the weights of a step size of nothing, each step has the loss of another mask."""
    made = learner(task_chunk=2)
    made.lr = 0.0
    torch.manual_seed(3)
    same = random_tasks(1, WAYS, 1, 1, side=SIDE)
    scores = made.meta_gradient(TaskBatch.stack([same] * 4), 1)
    assert len(set(scores.losses.tolist())) == 4


def test_what_draws_is_not_compiled():
    made = learner()
    expected = loss(made, 2)
    made.compiled = True
    with pytest.warns(UserWarning, match="the network draws random numbers, which compiled code would draw otherwise"):
        assert loss(made, 2) == expected


@pytest.mark.parametrize("engine", ["loop", "vectorized"])
def test_a_resumed_run_ends_bit_for_bit(engine, own_registry, glyphs_root, tmp_path):
    register_backbone("dropping", Dropping)
    settings = [*TINY, "model.name=dropping"]
    settings += [f"algorithm.engine={engine}", "train.iterations=6", "train.checkpoint_every=3", "run.threads=1"]
    experiment = load_experiment(None, [*settings, f"data.root={glyphs_root}"])
    whole = tmp_path / "whole"
    train(experiment, whole)
    images = load_data(experiment.data)
    trainer = MetaTrainer(experiment, images, class_split(experiment.data, images), torch.device("cpu"))
    for _ in itertools.islice(trainer.iterations(), 3):
        pass
    half = trainer.checkpoint()
    torch.rand(7)  # what the process drew until then is lost with it
    resumed = MetaTrainer(experiment, images, class_split(experiment.data, images), torch.device("cpu"))
    resumed.restore(half)
    list(resumed.iterations())
    for name, value in load_checkpoint(whole / "last.pth").weights.items():
        assert torch.equal(resumed.learner.module.state_dict()[name], value), name
