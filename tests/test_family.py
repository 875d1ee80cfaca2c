"""A contract for every member of the family, from the config to a prediction."""

from functools import partial

import numpy as np
import pytest
import torch

from benchmarks import family
from maml_l2l.algorithms import MetaLearner, VectorizedMAML, build_learner
from maml_l2l.backbones import register_backbone
from maml_l2l.checkpoints.checkpoint import load_checkpoint
from maml_l2l.config import Algorithm, load_experiment, parse_experiment, with_overrides
from maml_l2l.experiments.evaluation import evaluate
from maml_l2l.experiments.trainer import step_weights
from maml_l2l.experiments.training import train
from maml_l2l.prediction import FewShotClassifier
from maml_l2l.system.errors import UserError
from tests.test_resume import same_state
from tests.test_training import TINY

MEMBERS = {
    "first order": ["algorithm.gradient=first"],
    "lslr": ["algorithm.update=lslr", "algorithm.inner_steps=2"],
    "meta_sgd": ["algorithm.update=meta_sgd"],
    "meta_curvature": ["algorithm.update=meta_curvature", "algorithm.learn_inner_lr=true"],
    "kronecker": ["algorithm.update=kronecker"],
    "head": ["algorithm.adapt=head"],
    "body": ["algorithm.adapt=body"],
    "patterns": ["algorithm.adapt=['norms.*', 'head.bias']"],
    "recompute": ["algorithm.inner_steps=5", "algorithm.recompute=sqrt", "algorithm.inner_lr=0.1"],
    "prototype": ["algorithm.head=prototype", "algorithm.normalisation=support"],
    "prototype and curvature": ["algorithm.head=prototype", "algorithm.update=meta_curvature"],
    "implicit": ["algorithm.gradient=implicit", "algorithm.inner_steps=2"],
    "reptile": ["algorithm.gradient=reptile", "algorithm.inner_steps=2"],
    "finite differences": ["algorithm.gradient=finite_difference", "algorithm.learn_inner_lr=true"],
    "MAML++": [
        *("algorithm.inner_steps=2", "algorithm.multi_step_loss=5", "algorithm.second_order_from=2"),
        *("algorithm.norm_per_step=true", "algorithm.update=lslr"),
    ],
    "loop, prototype and curvature": [
        *("algorithm.engine=loop", "algorithm.head=prototype", "algorithm.update=meta_curvature"),
    ],
}


def experiment(member, root, **others):
    settings = [f"{key.replace('_', '.', 1)}={value}" for key, value in others.items()]
    return load_experiment(
        None, [*TINY, f"data.root={root}", "eval.tasks=6", "eval.steps=2", *MEMBERS[member], *settings]
    )


@pytest.mark.filterwarnings("ignore:.*(ink|signs)")  # the pictures are noise
@pytest.mark.parametrize("member", MEMBERS)
def test_trains_resumes_evaluates_and_predicts(member, glyphs_root, tmp_path):
    for folder, lengths in (("straight", [6]), ("resumed", [4, 6])):
        for length in lengths:
            settings = experiment(member, glyphs_root, train_iterations=length)
            train(settings, tmp_path / folder, resume=length > lengths[0])
    straight, resumed = (load_checkpoint(tmp_path / name / "last.pth") for name in ("straight", "resumed"))
    assert same_state(straight, resumed)
    if straight.transform is not None:
        assert all(torch.equal(straight.transform[name], value) for name, value in resumed.transform.items())
    again = [evaluate(straight).accuracies for _ in range(2)]
    assert torch.equal(*again)
    assert again[0].shape == (3, 6)
    pictures = np.random.default_rng(0).integers(0, 2, (4, 28, 28), dtype=np.uint8) * 255
    classifier = FewShotClassifier(straight).fit(list(pictures[:3]), [0, 1, 2])
    probabilities = classifier.predict_proba(list(pictures))
    assert probabilities.shape == (4, 3)
    np.testing.assert_allclose(probabilities.sum(1), 1, rtol=1e-5)


def test_prototypes_serve_more_ways_than_they_were_trained_with(glyphs_root, tmp_path):
    train(experiment("prototype", glyphs_root), tmp_path / "run")
    checkpoint = load_checkpoint(tmp_path / "run" / "best.pth")
    many = with_overrides(checkpoint.experiment, {"task.ways": 9}, "the test")
    assert evaluate(checkpoint, many, "train").accuracies.shape == (3, 6)
    learned = [*TINY, f"data.root={glyphs_root}"]
    train(load_experiment(None, learned), tmp_path / "learned")
    checkpoint = load_checkpoint(tmp_path / "learned" / "best.pth")
    with pytest.raises(UserError, match="head has 3 outputs, so it serves tasks of up to 3 classes, not of 9"):
        evaluate(checkpoint, with_overrides(checkpoint.experiment, {"task.ways": 9}, "the test"), "train")


def test_a_transform_is_the_start_of_another_run_that_has_the_same(glyphs_root, tmp_path):
    train(experiment("meta_curvature", glyphs_root), tmp_path / "first")
    start = tmp_path / "first" / "best.pth"
    train(experiment("meta_curvature", glyphs_root, model_pretrained=start, train_meta_lr=1e-9), tmp_path / "second")
    first, second = (load_checkpoint(path) for path in (start, tmp_path / "second" / "best.pth"))
    for name, value in first.transform.items():
        torch.testing.assert_close(second.transform[name], value, rtol=0, atol=1e-6)
    with pytest.raises(UserError, match=r"has algorithm\.update meta_curvature, and this run sgd. Give both the same"):
        train(
            experiment("prototype", glyphs_root, model_pretrained=start, algorithm_learn_inner_lr="true"),
            tmp_path / "x",
        )


def test_a_pattern_that_fits_no_parameter_is_refused():
    backbone = {"name": "conv4", "ways": 3, "channels": 1, "filters": 4, "downsample": "stride"}
    with pytest.raises(UserError, match=r"no parameter is called 'haed.\*'. There are: convolutions.0.weight"):
        build_learner(Algorithm(adapt=["haed.*"]), backbone)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["gradient=implicit", "update=meta_sgd"], "`algorithm.gradient: implicit` has no use for `algorithm.update`"),
        (["gradient=implicit", "update=lslr"], "`algorithm.gradient: implicit` has no use for `algorithm.update`"),
        (
            ["gradient=implicit", "norm_per_step=true"],
            "has no use for `algorithm.norm_per_step`: leave it out, found T",
        ),
        (["gradient=reptile", "head=prototype"], "`algorithm.gradient: reptile` has no use for `algorithm.head`"),
        (["gradient=reptile", "adapt=head"], "`algorithm.gradient: reptile` has no use for `algorithm.adapt`"),
        (["gradient=reptile", "recompute=sqrt"], "`algorithm.gradient: reptile` has no use for `algorithm.recompute`"),
        (
            ["gradient=first", "second_order_from=5"],
            "has no use for `algorithm.second_order_from`: leave it out, found 5",
        ),
        (["proximal=1.0"], "`algorithm.gradient: second` has no use for `algorithm.proximal`: leave it out, found 1.0"),
        (["gradient=reptile", "engine=loop"], "is for `algorithm.engine: vectorized`, found engine `loop`"),
        (["multi_step_loss=9"], "`algorithm.multi_step_loss` is for 2 inner steps or more, found `inner_steps` 1"),
    ],
)
def test_what_does_not_go_together_is_refused(settings, message):
    with pytest.raises(UserError, match=message):
        load_experiment(None, [f"algorithm.{setting}" for setting in settings])


def test_the_older_name_of_the_gradient(tmp_path):
    assert load_experiment(None, ["algorithm.gradient=first"]).algorithm.gradient == "first"
    trained = parse_experiment({"algorithm": {"order": "first"}}, "an old checkpoint")
    assert with_overrides(trained, {"algorithm.order": "second"}, "the test").algorithm.gradient == "second"
    with pytest.raises(
        UserError, match=r"`algorithm.order` is the older name of `algorithm.gradient`: give one of them"
    ):
        parse_experiment({"algorithm": {"order": "first", "gradient": "first"}}, "the test")


def test_norms_per_step_need_a_normalisation_layer():
    with pytest.raises(UserError, match=r"has no normalisation layer with scale and shift. Leave norm_per_step out"):
        VectorizedMAML(torch.nn.Linear(2, 2), lr=0.1).learn_norms(1)


@pytest.mark.parametrize("update", ["meta_sgd", "kronecker"])
def test_prototypes_with_a_transform_per_class_serve_the_ways_of_the_training(update, glyphs_root, tmp_path):
    settings = experiment("prototype", glyphs_root, algorithm_update=update, train_iterations=1)
    train(settings, tmp_path / "run")
    checkpoint = load_checkpoint(tmp_path / "run" / "last.pth")
    for ways in (2, 4):
        message = f"{update}, was learned for heads of 3 classes, so it serves tasks of 3 classes, not of {ways}"
        with pytest.raises(UserError, match=message):
            evaluate(checkpoint, with_overrides(checkpoint.experiment, {"task.ways": ways}, "the test"))


def test_weights_of_the_multi_step_loss_fade_to_the_last():
    assert step_weights(4, 0.0) == pytest.approx([0.25] * 4)
    assert step_weights(4, 0.5) == pytest.approx([0.125, 0.125, 0.125, 0.625])
    assert step_weights(4, 0.99) == pytest.approx([0.0075, 0.0075, 0.0075, 0.9775])
    assert step_weights(4, 1.0) is None


def test_first_order_comes_before_second(glyphs_root, tmp_path, monkeypatch):
    orders, real = [], MetaLearner.meta_gradient

    def seen(learner, *arguments):
        orders.append(learner.first_order)
        return real(learner, *arguments)

    monkeypatch.setattr(MetaLearner, "meta_gradient", seen)
    train(experiment("MAML++", glyphs_root, train_iterations=4), tmp_path / "run")
    assert orders == [True, True, False, False]


def test_norms_per_step_start_as_those_of_a_pretrained_network(glyphs_root, tmp_path):
    train(experiment("prototype", glyphs_root), tmp_path / "first")
    start, others = tmp_path / "first" / "best.pth", {"train_meta_lr": 1e-9, "train_iterations": 1}
    per_step = {"algorithm_norm_per_step": "true", "algorithm_inner_steps": 2}
    train(experiment("prototype", glyphs_root, model_pretrained=start, **per_step, **others), tmp_path / "second")
    train(
        experiment("prototype", glyphs_root, model_pretrained=tmp_path / "second" / "last.pth", **per_step, **others),
        tmp_path / "third",
    )
    first, *later = (load_checkpoint(path) for path in (start, *tmp_path.glob("[!f]*/last.pth")))
    for checkpoint in later:
        for name, rows in checkpoint.norms.items():
            assert rows.shape == (3, *first.weights[name].shape)
            torch.testing.assert_close(rows, first.weights[name].expand_as(rows), rtol=0, atol=1e-6)
    with pytest.raises(UserError, match="has normalisations per step, and this run none"):
        train(
            experiment("prototype", glyphs_root, model_pretrained=tmp_path / "second" / "last.pth", **others),
            tmp_path / "x",
        )


def test_a_run_without_steps_takes_the_normalisations_from_before_the_first_step(glyphs_root, tmp_path):
    per_step = {"algorithm_norm_per_step": "true", "algorithm_inner_steps": 2}
    train(experiment("prototype", glyphs_root, **per_step), tmp_path / "first")
    start, others = tmp_path / "first" / "last.pth", {"train_meta_lr": 1e-9, "train_iterations": 1}
    train(
        experiment("prototype", glyphs_root, algorithm_inner_steps=0, model_pretrained=start, **others),
        tmp_path / "second",
    )
    first, second = load_checkpoint(start), load_checkpoint(tmp_path / "second" / "last.pth")
    for name, rows in first.norms.items():
        assert not torch.equal(rows[0], rows[1])
        torch.testing.assert_close(second.weights[name], rows[0], rtol=0, atol=1e-6)


@pytest.mark.filterwarnings("ignore:.*(ink|signs)")  # the pictures are noise
def test_a_multi_step_loss_of_the_training_asks_nothing_of_a_prediction(glyphs_root, tmp_path):
    train(experiment("MAML++", glyphs_root, train_iterations=1), tmp_path / "run")
    pictures = np.random.default_rng(0).integers(0, 2, (3, 28, 28), dtype=np.uint8) * 255
    classifier = FewShotClassifier(load_checkpoint(tmp_path / "run" / "last.pth"), steps=1)
    assert classifier.fit(list(pictures), [0, 1, 2]).steps_ == 1


class Ending(torch.nn.Module):
    """A network whose last layer is given, under the name that is given, with parameters of 0 and 3 dimensions."""

    def __init__(self, ways, name="head", layer=torch.nn.Linear):
        super().__init__()
        self.body, self.name = torch.nn.Linear(28 * 28, 4), name
        self.scale, self.token = torch.nn.Parameter(torch.tensor(1.0)), torch.nn.Parameter(torch.zeros(1, 1, 4))
        setattr(self, name, layer(4, ways))

    def forward(self, x):
        features = self.scale * self.body(x.flatten(1)) + self.token[0]
        return getattr(self, self.name)(features)


@pytest.fixture
def built():
    """`built(network, **keys)`: the learner of an own network under keys of `algorithm`."""

    def build(network, **keys):
        register_backbone("ending", lambda ways: network)
        return build_learner(Algorithm(**keys), {"name": "ending", "ways": 3})

    return build


@pytest.mark.parametrize("engine", ["loop", "vectorized"])
@pytest.mark.parametrize(
    ("network", "keys", "message"),
    [
        (Ending(3, "fc"), {"head": "prototype"}, r"prototype is for networks that end in a linear layer `head` with a"),
        (
            Ending(3, layer=partial(torch.nn.Linear, bias=False)),
            {"head": "prototype"},
            r"this network \(Ending\) has n",
        ),
        (Ending(3, layer=lambda *sizes: torch.nn.Sequential(torch.nn.Linear(*sizes))), {"head": "prototype"}, "has no"),
        (Ending(3, "fc"), {"adapt": "body"}, r"body is all but the layer `head`, and this network \(Ending\) has none"),
        (Ending(3), {"adapt": []}, r"algorithm.adapt: found \[\], so the inner loop would adapt nothing"),
        (
            torch.nn.Sequential(torch.nn.BatchNorm2d(1, track_running_stats=False), torch.nn.Flatten()),
            {"adapt": ["0.*"], "norm_per_step": True},
            r"algorithm.adapt: found \['0.\*'\], so the inner loop would adapt nothing",
        ),
    ],
)
def test_a_network_that_cannot_do_it_is_refused(built, engine, network, keys, message):
    with pytest.raises(UserError, match=message) as refused:
        built(network, engine=engine, **keys)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("update", ["meta_curvature", "kronecker"])
def test_a_transform_leaves_parameters_as_they_are_whose_shape_it_does_not_take(built, update):
    network = Ending(3, layer=lambda *sizes: torch.nn.Sequential(torch.nn.Linear(*sizes)))
    learner = built(network, update=update)
    gradients = {name: torch.rand_like(parameter) for name, parameter in network.named_parameters()}
    changed = learner.transform(gradients)
    assert len(learner.transform.transforms) == len(gradients) - 2
    assert all(torch.equal(changed[name], gradients[name]) for name in ("scale", "token"))


def test_a_cost_is_the_mean_over_the_training_of_what_changes_along_it(monkeypatch):
    keys = ["train.iterations=9", "algorithm.inner_steps=2", "algorithm.multi_step_loss=3"]
    found = {0: {"ms": 30, "mib": 7}, 3: {"ms": 12, "mib": 5}}
    monkeypatch.setattr(family.meta_gradients, "cost", lambda experiment, done: found[done])
    assert family.cost(load_experiment(None, keys)) == {"ms": (3 * 30 + 6 * 12) / 9, "mib": 7}


def test_the_family_refuses_a_member_before_it_trains_another(glyphs_root, tmp_path, monkeypatch):
    monkeypatch.setattr(family, "row_of", lambda *_: pytest.fail("it trained"))
    arguments = ["family", "--config", "configs/quickstart.yaml", "--members", "MAML", "multi-step loss"]
    monkeypatch.setattr("sys.argv", arguments)
    with pytest.raises(UserError, match=r"`algorithm.multi_step_loss` is for 2 inner steps or more"):
        family.main()
