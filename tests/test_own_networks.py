"""Networks that nobody here wrote, torchvision's: their gradients, and the way from training to prediction."""

import dataclasses

import numpy as np
import pytest
import torch
import torchvision
from learn2learn.algorithms import MAML
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import cross_entropy

import maml_l2l
from tests.test_engines import random_tasks


def resnet18(ways, channels):
    network = torchvision.models.resnet18(num_classes=ways)
    network.conv1 = nn.Conv2d(channels, 64, 3, padding=1, bias=False)
    return torch.func.replace_all_batch_norm_modules_(network)


def vision_transformer(ways, channels, image_size):
    sizes = {"patch_size": 7, "num_layers": 2, "num_heads": 2, "hidden_dim": 16, "mlp_dim": 32}
    network = torchvision.models.VisionTransformer(image_size, **sizes, num_classes=ways)
    network.conv_proj = nn.Conv2d(channels, 16, 7, 7)
    nn.init.normal_(network.heads.head.weight, std=0.1)  # torchvision's is zero
    return network


NETWORKS = {
    "resnet18": lambda: resnet18(3, 1),
    "vision_transformer": lambda: vision_transformer(3, 1, 28),
}


@pytest.fixture(autouse=True)
def _registered(own_registry):
    for factory in (resnet18, vision_transformer):
        maml_l2l.register_backbone(factory.__name__, factory)


def gradients_of_learn2learn(network, tasks, steps, first_order):
    """Its own loop, whose attention must have second derivatives, too."""
    maml = MAML(network, lr=0.1, first_order=first_order)
    with sdpa_kernel(SDPBackend.MATH):
        for x, y, queries, labels in zip(
            tasks.support, tasks.support_labels, tasks.query, tasks.query_labels, strict=True
        ):
            learner = maml.clone()
            for _ in range(steps):
                learner.adapt(cross_entropy(learner(x), y))
            (cross_entropy(learner(queries), labels) / len(tasks)).backward()
    return torch.cat([parameter.grad.flatten() for parameter in network.parameters()])


@pytest.mark.parametrize(
    ("name", "first_order"),
    [("resnet18", True), ("vision_transformer", False), pytest.param("resnet18", False, marks=pytest.mark.slow)],
)
def test_the_fast_engine_has_learn2learn_s_gradients(name, first_order):
    torch.manual_seed(0)
    network, tasks = NETWORKS[name]().double(), random_tasks(2, 3, 2, 2)
    expected = gradients_of_learn2learn(network, tasks, 1, first_order)
    network.zero_grad()
    maml_l2l.VectorizedMAML(network, lr=0.1, first_order=first_order).meta_gradient(tasks, inner_steps=1)
    found = torch.cat([parameter.grad.flatten() for parameter in network.parameters()])
    assert ((found - expected).norm() / expected.norm()).item() < 1e-9


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("engine", [maml_l2l.VectorizedMAML, maml_l2l.LoopMAML])
def test_in_inductive_use_a_query_does_not_depend_on_other_queries(name, engine):
    torch.manual_seed(0)
    learner, tasks = engine(NETWORKS[name]().double().eval(), lr=0.1), random_tasks(1, 3, 1, 1)
    with torch.no_grad():
        together = learner.adapt_and_score(tasks, [0, 1], normalisation="support")
        queries = (
            {"query": tasks.query[:, i : i + 1], "query_labels": tasks.query_labels[:, i : i + 1]} for i in range(3)
        )
        alone = [
            learner.adapt_and_score(dataclasses.replace(tasks, **one), [0, 1], normalisation="support")
            for one in queries
        ]
    torch.testing.assert_close(together, torch.cat(alone, dim=2))


def test_attention_is_left_as_it_was():
    before = torch.backends.mha.get_fastpath_enabled(), torch.backends.cuda.flash_sdp_enabled()
    learner = maml_l2l.VectorizedMAML(vision_transformer(3, 1, 28), lr=0.1)
    learner.meta_gradient(random_tasks(1, 3, 1, 1, dtype=torch.float32), 1)
    assert (torch.backends.mha.get_fastpath_enabled(), torch.backends.cuda.flash_sdp_enabled()) == before


@pytest.mark.parametrize("name", [pytest.param("resnet18", marks=pytest.mark.slow), "vision_transformer"])
def test_from_training_to_prediction(name, glyphs_root, tmp_path):
    sizes = ["task.ways=3", "train.meta_batch=2", "train.validate_tasks=4", "eval.tasks=10", "eval.steps=1"]
    own = [f"model.name={name}", "algorithm.inner_lr=0.1", "train.iterations=50", "run.device=cpu"]
    data = ["data.name=glyphs", "data.alphabets=3", f"data.root={glyphs_root}"]
    maml_l2l.train(maml_l2l.load_experiment(None, [*data, *own, *sizes]), tmp_path / "run")
    trained = maml_l2l.load_checkpoint(tmp_path / "run" / "last.pth")
    assert (trained.iteration, trained.backbone["name"]) == (50, name)
    maml_l2l.save_checkpoint(dataclasses.replace(trained, optimizer=None), tmp_path / "slim.pth")
    again = maml_l2l.load_checkpoint(tmp_path / "slim.pth")
    assert all(torch.equal(weight, again.weights[key]) for key, weight in trained.weights.items())
    first, second = maml_l2l.evaluate(trained), maml_l2l.evaluate(str(tmp_path / "slim.pth"))
    assert torch.equal(first.losses, second.losses)
    pictures = np.random.default_rng(0).integers(0, 256, (4, 40, 40), dtype=np.uint8)
    classifier = maml_l2l.FewShotClassifier(tmp_path / "slim.pth").fit(pictures[:2], ["ant", "bee"])
    together = classifier.predict_proba(pictures)
    np.testing.assert_allclose(together.sum(1), 1, rtol=1e-5)
    np.testing.assert_allclose(classifier.predict_proba(pictures[3:]), together[3:], atol=1e-5)
