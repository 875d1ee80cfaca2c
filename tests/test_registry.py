"""Backbones by name: who may bring which network, and what no checkpoint can do."""

import dataclasses
import sys

import pytest
import torch
from PIL import Image
from torch import nn

from maml_l2l import evaluate, load_checkpoint, load_experiment, register_backbone, save_checkpoint, train
from maml_l2l.algorithms import build_learner
from maml_l2l.backbones import Conv4, backbone_arguments, build_backbone, use_backbone
from maml_l2l.config import Algorithm, Model, with_overrides
from maml_l2l.system.errors import UserError
from tests.commands import assert_user_error, run
from tests.test_checkpoint import checkpoint, write_unchecked  # noqa: F401
from tests.test_training import TINY

SIZES = {"ways": 3, "channels": 1, "image_size": 28}
OWN = """
import torch

print("own code runs")

def linear(ways, channels, image_size):
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(channels * image_size**2, ways))

not_callable = 5
"""


def linear(ways, channels, image_size):
    return nn.Sequential(nn.Flatten(), nn.Linear(channels * image_size**2, ways))


def test_a_factory_gets_the_arguments_that_it_asks_for():
    seen = {}

    def all_of_them(**arguments):
        seen.update(arguments)
        return nn.Linear(1, arguments["ways"])

    def some(ways, filters, depth=3):
        return nn.Linear(filters, ways)

    register_backbone("all", all_of_them)
    register_backbone("some", some)
    assert backbone_arguments(Model(name="some", filters=7), **SIZES) == {"name": "some", "ways": 3, "filters": 7}
    build_backbone(backbone_arguments(Model(name="all"), **SIZES))
    assert seen == {**SIZES, "filters": 64, "downsample": "stride"}
    assert backbone_arguments(Model(), **SIZES).keys() == {"name", "ways", "channels", "filters", "downsample"}


@pytest.mark.parametrize(
    ("name", "factory", "message"),
    [
        (
            "mine",
            lambda ways, depth: None,
            "its factory needs depth, which nothing gives. It may ask for ways, channels,",
        ),
        ("mine", lambda channels: None, "its factory takes no `ways`, the number of classes"),
        ("mine", lambda ways, /: None, "its factory takes no `ways`"),
        ("mine", 5, "found 5, expected a function or a class"),
        ("conv4", Conv4, "the backbone conv4 is built in"),
    ],
)
def test_what_is_no_factory_is_refused(name, factory, message):
    with pytest.raises(UserError, match=message):
        register_backbone(name, factory)


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (lambda: None, "made an object of type NoneType. Its factory must return a torch.nn.Module"),
        (
            lambda: nn.Sequential(nn.BatchNorm2d(3)),
            r"statistics \(0\), .*torch.func.replace_all_batch_norm_modules_\(m",
        ),
        (lambda: nn.InstanceNorm2d(3, track_running_stats=True), "build it with track_running_stats=False, or keep"),
    ],
)
def test_a_network_that_engines_cannot_take_is_refused_by_their_builder(network, message):
    register_backbone("mine", lambda ways: network())
    with pytest.raises(UserError, match=message):
        build_learner(Algorithm(), {"name": "mine", "ways": 3})


def test_the_line_of_the_message_mends_the_network():
    register_backbone("mine", lambda ways: torch.func.replace_all_batch_norm_modules_(nn.Sequential(nn.BatchNorm2d(3))))
    assert build_learner(Algorithm(), {"name": "mine", "ways": 3}).module[0].running_mean is None


@pytest.fixture
def own_module(tmp_path, monkeypatch):
    (tmp_path / "own_networks.py").write_text(OWN)
    (tmp_path / "broken.py").write_text("import a_package_that_is_not_there")
    monkeypatch.syspath_prepend(tmp_path)
    yield "own_networks"
    sys.modules.pop("own_networks", None)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("conv5", "there is no backbone conv5. There are conv4, mlp, resnet12, timm:NAME and torchvision:NAME, or"),
        ("no_such.module:linear", "found no module no_such for no_such.module:linear. Start the command in the folder"),
        ("own_networks:conv", "the module own_networks has no conv. Name a function that it has"),
        (
            "own_networks:not_callable",
            "the backbone own_networks:not_callable: found 5, expected a function or a class",
        ),
    ],
)
def test_a_name_that_leads_to_no_factory_is_refused(own_module, name, message):
    with pytest.raises(UserError, match=message):
        use_backbone(name)


def test_an_own_module_that_lacks_a_package_says_so_itself(own_module):
    with pytest.raises(ModuleNotFoundError, match="a_package_that_is_not_there"):
        use_backbone("broken:linear")


@pytest.mark.parametrize("name", ["a b:c", "os:", ":system", "a:b:c", "", "5:x"])
def test_a_name_that_can_be_none_is_refused_by_the_config(name):
    with pytest.raises(
        UserError, match=r"`model.name` should be the name of a backbone, or package.module:factory, fou"
    ):
        load_experiment(None, [f"model.name={name!r}"])


def of_backbone(checkpoint, backbone, weights):  # noqa: F811
    model = {**checkpoint.config["model"], "name": backbone["name"]}
    config = {**checkpoint.config, "model": model}
    return dataclasses.replace(checkpoint, backbone=backbone, weights=weights, config=config)


def test_a_stranger_s_checkpoint_makes_no_code_load(checkpoint, own_module, tmp_path, capsys):  # noqa: F811
    name = "own_networks:linear"
    backbone = {"name": name, "ways": 5, "channels": 1, "image_size": 28}
    weights = linear(5, 1, 28).state_dict()
    path = tmp_path / "x.pth"
    write_unchecked(of_backbone(checkpoint, backbone, weights), path)
    with pytest.raises(UserError, match=r"x.pth: the backbone 'own_networks:linear' is not registered, and a checkpo"):
        load_checkpoint(path)
    with pytest.raises(UserError, match=r"--set model.name=own_networks:linear\."):
        evaluate(path)
    assert "own_networks" not in sys.modules
    use_backbone(name)  # the user's own word
    assert capsys.readouterr().out == "own code runs\n"
    learner = load_checkpoint(path).learner()
    assert torch.equal(learner.module[1].weight, weights["1.weight"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_size": 10**9}, "`backbone.image_size` should be less than or equal to 4096"),
        ({"filters": 4}, "unknown key `backbone.filters`"),
        ({"name": ["conv4"]}, "`backbone.name` should be a valid string"),
        ({"name": "mlp"}, "`backbone.name` should be 'conv4', as its config says, found 'mlp'"),
    ],
)
def test_a_backbone_that_does_not_fit_is_refused(checkpoint, tmp_path, changes, message):  # noqa: F811
    register_backbone("linear", linear)
    backbone = {"name": "linear", "ways": 5, "channels": 1, "image_size": 28} | changes
    write_unchecked(dataclasses.replace(checkpoint, backbone=backbone, weights={}), tmp_path / "x.pth")
    with pytest.raises(UserError, match=message):
        load_checkpoint(tmp_path / "x.pth")


def test_a_checkpoint_from_before_backbones_had_names_is_of_conv4(checkpoint, tmp_path):  # noqa: F811
    assert "name" not in checkpoint.backbone
    write_unchecked(checkpoint, tmp_path / "x.pth")
    assert load_checkpoint(tmp_path / "x.pth").backbone == {"name": "conv4", **checkpoint.backbone}


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.bool])
def test_a_table_of_indices_is_part_of_a_network(checkpoint, tmp_path, dtype):  # noqa: F811
    def with_table(ways):
        network = nn.Linear(2, ways)
        network.register_buffer("table", torch.arange(2).to(dtype))
        return network

    register_backbone("table", with_table)
    saved = of_backbone(checkpoint, {"name": "table", "ways": 5}, with_table(5).state_dict())
    save_checkpoint(saved, tmp_path / "x.pth")
    assert load_checkpoint(tmp_path / "x.pth").learner().module.table.tolist() == [0, 1]
    wrong = dataclasses.replace(saved, weights=saved.weights | {"table": torch.zeros(2)})
    with pytest.raises(UserError, match=rf"`weights.table` should be of type {dtype}, found torch.float32"):
        save_checkpoint(wrong, tmp_path / "y.pth")


def test_a_network_too_large_to_be_loaded_again_is_not_saved(checkpoint, tmp_path, monkeypatch):  # noqa: F811
    save_checkpoint(checkpoint, tmp_path / "x.pth")
    size = (tmp_path / "x.pth").stat().st_size
    monkeypatch.setattr("maml_l2l.checkpoints.checkpoint.MAX_BYTES", size)
    save_checkpoint(checkpoint, tmp_path / "x.pth")
    monkeypatch.setattr("maml_l2l.checkpoints.checkpoint.MAX_BYTES", size - 1)
    with pytest.raises(UserError, match=rf"y.pth: it would take {size} bytes, and checkpoints may have {size - 1}"):
        save_checkpoint(checkpoint, tmp_path / "y.pth")
    assert [path.name for path in tmp_path.iterdir()] == ["x.pth"]


def test_loading_draws_nothing_from_the_random_state(checkpoint, tmp_path):  # noqa: F811
    save_checkpoint(checkpoint, tmp_path / "x.pth")
    before = torch.get_rng_state()
    load_checkpoint(tmp_path / "x.pth").learner()
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("name", ["resnet12", "mlp"])
def test_a_built_in_backbone_trains_and_is_evaluated_and_resumed(name, glyphs_root, tmp_path):
    settings = [*TINY, f"data.root={glyphs_root}", f"model.name={name}", "train.meta_batch=2", "model.filters=2"]
    train(load_experiment(None, [*settings, "train.iterations=1"]), tmp_path / "run")
    train(load_experiment(None, [*settings, "train.iterations=2"]), str(tmp_path / "run"), resume=True)
    checkpoint = load_checkpoint(tmp_path / "run" / "last.pth")  # noqa: F811
    assert (checkpoint.iteration, checkpoint.backbone["name"]) == (2, name)
    overrides = {"eval.tasks": 3, "eval.steps": 1, "algorithm.normalisation": "support"}
    experiment = with_overrides(checkpoint.experiment, overrides, "the test")
    assert evaluate(checkpoint, experiment, "val").accuracies.shape == (2, 3)


def test_the_commands_work_with_an_own_network_that_the_user_names(own_module, glyphs_root, tmp_path):
    own = "model.name=own_networks:linear"
    settings = ["--set", *TINY, f"data.root={glyphs_root}", "eval.tasks=3"]
    model = tmp_path / "run" / "last.pth"

    def succeeds(*arguments):
        done = run(*arguments, folder=tmp_path)
        assert done.returncode == 0, done.stderr
        return done.stdout

    succeeds("maml_l2l.train", *settings, own, "train.iterations=1", "--run_dir", "run")
    succeeds("maml_l2l.train", "--resume", "run", "--set", "train.iterations=2")
    refused = run("maml_l2l.eval", "--model", model, folder=tmp_path)
    assert_user_error(refused, "yourself: --set model.name=own_networks:linear.")
    assert "own code runs" in succeeds("maml_l2l.eval", "--model", model, "--set", own)
    for label in ("ant", "bee"):
        (tmp_path / "support" / label).mkdir(parents=True)
        Image.new("L", (28, 28), 255).save(tmp_path / "support" / label / "1.png")
    predict = ["maml_l2l.predict", "--model", model, "--support", "support", "--query", "support"]
    assert_user_error(run(*predict, folder=tmp_path), "is not registered, and a checkpoint never makes code load")
    refused = run(*predict, "--set", own, "task.ways=2", folder=tmp_path)
    assert_user_error(refused, "--set task.ways=2: a prediction takes all but model.name and model.weights from the")
    succeeds(*predict, "--set", own)


def test_a_run_does_not_start_from_a_network_of_another_kind(checkpoint, glyphs_root, tmp_path):  # noqa: F811
    save_checkpoint(checkpoint, tmp_path / "conv4.pth")
    settings = [*TINY, f"data.root={glyphs_root}", "task.ways=5", "model.name=mlp"]
    experiment = load_experiment(None, [*settings, f"model.pretrained={tmp_path / 'conv4.pth'}"])
    with pytest.raises(UserError, match=r"is a network of name conv4, filters 4, downsample stride, and this run's"):
        train(experiment, tmp_path / "run")
