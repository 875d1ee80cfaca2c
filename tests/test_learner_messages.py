"""What a learner refuses from Python, and the message that says what to do."""

import pytest
import torch
from torch import nn

from maml_l2l.algorithms import LoopMAML, VectorizedMAML
from maml_l2l.system.errors import UserError
from maml_l2l.tasks.batch import TaskBatch
from tests.test_engines import random_tasks

SIDE, WAYS = 7, 3
ENGINES = pytest.mark.parametrize("engine", [VectorizedMAML, LoopMAML])


class Headed(nn.Module):
    def __init__(self, outputs=WAYS):
        super().__init__()
        self.body, self.head = nn.Linear(SIDE * SIDE, 4), nn.Linear(4, outputs)

    def forward(self, x):
        return self.head(self.body(x.flatten(1)).tanh())


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.head = nn.LSTM(SIDE, 4, batch_first=True), nn.Linear(4, WAYS)

    def forward(self, x):
        return self.head(self.body(x.flatten(1, 2))[0][:, -1])


class Branching(Headed):
    def forward(self, x):
        outputs = super().forward(x)
        return 2 * outputs if outputs.mean() > 0 else outputs


def weight_normed():
    return nn.Sequential(nn.Flatten(), nn.utils.parametrizations.weight_norm(nn.Linear(SIDE * SIDE, WAYS)))


def tasks(targets=None):
    batch = random_tasks(3, WAYS, 1, 1, dtype=torch.float32, side=SIDE)
    return batch if targets is None else TaskBatch(batch.support, targets, batch.query, targets)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("gradient", "Implicit", "gradient: expected one of second, implicit, reptile, finite_difference, found 'Impl"),
        ("gradient", "first", "found 'first'. First order is first_order=True."),
        ("adapted", "head.*", r"adapted: expected a list of patterns, such as \['head.*'\], found 'head.*'."),
        ("adapted", ["hed.*"], "adapted: no parameter is called 'hed.*'. There are: body.weight, body.bias, head.wei"),
        ("task_chunk", -1, "task_chunk: expected 1 or more, found -1."),
    ],
)
def test_an_attribute_that_cannot_be_is_refused_when_it_is_set(name, value, message):
    learner = VectorizedMAML(Headed(), lr=0.1)
    with pytest.raises(UserError, match=f"{message}"):
        setattr(learner, name, value)


def test_the_loop_has_no_approximations():
    with pytest.raises(UserError, match=r"LoopMAML has the exact gradient, .* Use VectorizedMAML."):
        LoopMAML(Headed(), lr=0.1).gradient = "implicit"


def test_a_head_of_prototypes_needs_a_head():
    with pytest.raises(UserError, match=r"end in a linear layer `head` with a bias, and this one .Linear. has none"):
        VectorizedMAML(nn.Linear(3, 2), lr=0.1).prototype_head = True


@ENGINES
def test_steps_that_cannot_be_are_refused(engine):
    learner = engine(Headed(), lr=0.1)
    with pytest.raises(UserError, match=r"inner_steps: expected a number from 0, found -1."):
        learner.meta_gradient(tasks(), -1)
    with pytest.raises(UserError, match=r"steps: expected 1 or more, found 0."):
        learner.learn_inner_lrs(0)
    batch = tasks()
    for steps in ([2, 1], [0, 0], [], [-1]):
        with pytest.raises(UserError, match=r"steps should be numbers from 0, each greater than the one before, found"):
            learner.adapt_and_score(batch, steps)
        with pytest.raises(UserError, match=r"steps should be numbers from 0, each greater than the one before, found"):
            learner.adapt_once(batch.support, batch.support_labels, WAYS, steps)


@ENGINES
def test_a_support_set_that_lacks_a_class_is_refused(engine):
    learner, batch = engine(Headed(), lr=0.1), tasks()
    learner.prototype_head = True  # whose prototype would be the mean of nothing
    with pytest.raises(UserError, match=r"support_labels: task 0 has no image of class 2 of its 3 ways"):
        learner.adapt_once(batch.support, batch.support_labels.clamp(max=1), WAYS, [0])


@ENGINES
@pytest.mark.parametrize("call", ["meta_gradient", "adapt_and_score", "adapt_once"])
def test_an_inner_loop_of_nothing_is_refused(engine, call):
    learner, batch = engine(Headed().requires_grad_(False), lr=0.1), tasks()
    with pytest.raises(UserError, match="the inner loop would adapt nothing: all that `adapted` names is frozen"):
        if call == "adapt_once":
            learner.adapt_once(batch.support, batch.support_labels, WAYS, [1])
        else:
            getattr(learner, call)(batch, 1 if call == "meta_gradient" else [1])


@ENGINES
@pytest.mark.parametrize("call", ["meta_gradient", "adapt_and_score"])
def test_a_network_of_too_few_outputs_is_refused(engine, call):
    with pytest.raises(UserError, match=r"the network has 2 outputs, too few for tasks of 3 ways."):
        getattr(engine(Headed(2), lr=0.1), call)(tasks(), 1 if call == "meta_gradient" else [0])


@pytest.mark.parametrize("make", [Recurrent, Branching, weight_normed])
def test_a_network_for_the_loop_alone_is_said_to_be_one(make):
    with pytest.raises(
        UserError, match=r"many copies of this network at once; LoopMAML can .algorithm.engine: loop.. "
    ):
        VectorizedMAML(make(), lr=0.1).meta_gradient(tasks(), 2)
    assert LoopMAML(make(), lr=0.1).meta_gradient(tasks(), 2).losses.shape == (3,)


@pytest.mark.parametrize("gradient", ["implicit", "reptile"])
def test_what_an_approximation_has_nothing_to_say_of_is_refused(gradient):
    learner = VectorizedMAML(Headed(), lr=0.1)
    learner.gradient, learner.step_weights = gradient, [0.5, 0.5]
    learner.learn_inner_lrs(2)
    with pytest.raises(UserError, match=f"gradient: '{gradient}' has no use for inner_lrs, step_weights. Leave them"):
        learner.meta_gradient(tasks(), 2)


@pytest.mark.parametrize(("name", "value"), [("gradient", "implicit"), ("prototype_head", True)])
def test_a_clone_that_would_adapt_otherwise_is_refused(name, value):
    learner = VectorizedMAML(Headed(), lr=0.1)
    setattr(learner, name, value)
    with pytest.raises(UserError, match=r"Call meta_gradient, adapt_and_score or adapt_once in its place."):
        learner.clone()


@ENGINES
def test_a_loss_of_more_than_a_number_is_refused(engine):
    learner = engine(Headed(), lr=0.1, loss=nn.CrossEntropyLoss(reduction="none"))
    with pytest.raises(UserError, match=r"found the shape \(3,\). Take the mean, as reduction='mean' does."):
        learner.meta_gradient(tasks(), 1)


@ENGINES
def test_several_classes_of_an_image_count_alike(engine):
    """As many one-class images have the same mean cross-entropy."""
    torch.manual_seed(0)
    learner = engine(nn.Linear(7, 6).double(), lr=0.3)
    words, labels = torch.rand(3, 4, 5, 7).double(), torch.randint(6, (3, 4, 5))
    several = learner.meta_gradient(TaskBatch(words, labels, words, labels), 2)
    gradient = learner.module.weight.grad.clone()
    flat, classes = words.flatten(1, 2), labels.flatten(1)
    single = learner.meta_gradient(TaskBatch(flat, classes, flat, classes, ways=None), 2)
    torch.testing.assert_close(several, single)
    torch.testing.assert_close(gradient, learner.module.weight.grad)


@ENGINES
@pytest.mark.parametrize("targets", [torch.randint(2, (3, 3, 4)), torch.rand(3, 3, 4) > 0.5, torch.rand(3, 3, 4)])
def test_accuracies_are_nan_where_targets_are_no_class_per_image(engine, targets):
    def loss(outputs, targets):
        return nn.functional.binary_cross_entropy_with_logits(outputs, targets.to(outputs.dtype))

    scores = engine(Headed(4), lr=0.1, loss=loss).meta_gradient(tasks(targets), 1)
    assert scores.accuracies.shape == (3,) and scores.accuracies.isnan().all()


@ENGINES
def test_the_loop_of_a_loop_goes_on_without_gradients(engine):
    with torch.no_grad():
        engine(Headed(), lr=0.1).meta_gradient(tasks(), 1)


@ENGINES
def test_inductive_normalisation_of_pieces_of_images_is_refused(engine):
    class Pieces(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.head = nn.BatchNorm1d(SIDE, track_running_stats=False), nn.Linear(SIDE * SIDE, WAYS)

        def forward(self, x):
            return self.head(self.norm(x.reshape(-1, SIDE)).reshape(len(x), -1))

    with pytest.raises(UserError, match=r"BatchNorm1d normalises parts of them. Take 'batch', or a layer th"):
        engine(Pieces(), lr=0.1).meta_gradient(tasks(), 1, "support")


@ENGINES
def test_what_is_learned_has_the_precision_of_the_network(engine):
    from learn2learn.optim.transforms import MetaCurvatureTransform

    learner = engine(Headed().double(), lr=0.4)
    learner.learn_inner_lrs(2)
    learner.learn_transform(MetaCurvatureTransform)
    assert {parameter.dtype for parameter in learner.parameters()} == {torch.float64}
    assert (learner.inner_lrs == 0.4).all()
    learner.meta_gradient(random_tasks(2, WAYS, 1, 1, side=SIDE), 2)
