"""Checkpoints: what goes in comes out, and what is not one is refused in one sentence."""

import dataclasses
import math
import os
import zipfile
from collections import OrderedDict

import pytest
import torch

from maml_l2l.backbones import Conv4
from maml_l2l.checkpoints.checkpoint import FORMAT, MAX_BYTES, VERSION, Checkpoint, load_checkpoint, save_checkpoint
from maml_l2l.config import Experiment
from maml_l2l.system.errors import UserError

BACKBONE = {"ways": 5, "channels": 1, "filters": 4, "downsample": "stride"}
EXPERIMENT = Experiment(model={"filters": 4})


@pytest.fixture
def checkpoint():
    torch.manual_seed(0)
    return Checkpoint(
        config=EXPERIMENT.model_dump(),
        split={"train": ["a"], "val": ["b"], "test": ["c"]},
        iteration=7,
        validation_accuracy=51.5,
        backbone=BACKBONE,
        weights=Conv4(**BACKBONE).state_dict(),
        optimizer=None,
    )


def write_unchecked(checkpoint, path):
    """A file as anybody can write it."""
    torch.save({"format": FORMAT, "version": VERSION, **vars(checkpoint)}, path)


def assert_refused(checkpoint, path, message):
    """Saving refuses `checkpoint` before it writes, and so does loading it from a file that somebody else wrote."""
    with pytest.raises(UserError, match=message):
        save_checkpoint(checkpoint, path)
    assert not path.exists()
    write_unchecked(checkpoint, path)
    with pytest.raises(UserError, match=message) as caught:
        load_checkpoint(path)
    assert str(path) in str(caught.value)


def test_what_is_saved_is_loaded(checkpoint, tmp_path):
    save_checkpoint(checkpoint, tmp_path / "x.pth")
    loaded = load_checkpoint(tmp_path / "x.pth")
    assert loaded.experiment == EXPERIMENT
    assert (loaded.split, loaded.iteration, loaded.validation_accuracy) == (checkpoint.split, 7, 51.5)
    for name, weight in loaded.learner().module.state_dict().items():
        assert torch.equal(weight, checkpoint.weights[name])


def test_a_head_of_more_ways_than_its_config_says_is_loaded(checkpoint, tmp_path):
    config = Experiment(model=EXPERIMENT.model.model_dump(), task={"ways": 4}).model_dump()
    save_checkpoint(dataclasses.replace(checkpoint, config=config), tmp_path / "x.pth")
    assert load_checkpoint(tmp_path / "x.pth").backbone["ways"] == 5


def learning_config(inner_steps):
    learning = {"learn_inner_lr": True, "inner_steps": inner_steps}
    return Experiment(algorithm=learning, model=EXPERIMENT.model.model_dump()).model_dump()


def test_learned_step_sizes_are_part_of_a_checkpoint(checkpoint, tmp_path):
    learned = dataclasses.replace(checkpoint, config=learning_config(2), inner_lrs=torch.rand(2, 18))
    save_checkpoint(learned, tmp_path / "x.pth")
    assert torch.equal(load_checkpoint(tmp_path / "x.pth").learner().inner_lrs, learned.inner_lrs)


@pytest.mark.parametrize(
    ("steps", "inner_lrs", "message"),
    [
        (2, None, r"`checkpoint` lacks \['inner_lrs'\] and holds the unknown \[\]"),
        (2, torch.zeros(1, 18), r"`checkpoint.inner_lrs` should have the shape \(2, 18\), found \(1, 18\)"),
        (1, torch.full((1, 18), math.inf), "`checkpoint.inner_lrs` should hold finite floating-point numbers"),
        (0, torch.zeros(1, 18), r"`checkpoint` lacks \[\] and holds the unknown \['inner_lrs'\]"),
    ],
)
def test_step_sizes_that_do_not_fit_the_config_are_refused(checkpoint, tmp_path, steps, inner_lrs, message):
    config = learning_config(steps) if steps else checkpoint.config
    assert_refused(dataclasses.replace(checkpoint, config=config, inner_lrs=inner_lrs), tmp_path / "x.pth", message)


def test_the_backbone_loads_in_plain_pytorch(checkpoint, tmp_path):
    save_checkpoint(checkpoint, tmp_path / "x.pth")
    content = torch.load(tmp_path / "x.pth", weights_only=True)
    assert content["backbone"].pop("name") == "conv4"
    network = Conv4(**content["backbone"])
    network.load_state_dict(content["weights"])
    assert network(torch.rand(5, 1, 28, 28)).shape == (5, 5)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"there is no checkpoint .*none.pth. Give the path"):
        load_checkpoint(tmp_path / "none.pth")


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04 broken", b"\x80\x02."])
def test_a_file_that_is_no_checkpoint_is_refused(tmp_path, content):
    (tmp_path / "x.pth").write_bytes(content)
    with pytest.raises(UserError, match=r"x.pth is not a checkpoint, or is damaged"):
        load_checkpoint(tmp_path / "x.pth")


def test_a_folder_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"cannot read the checkpoint .*: it is a folder. Give the path of a"):
        load_checkpoint(tmp_path)


def test_a_truncated_checkpoint_is_refused(checkpoint, tmp_path):
    path = tmp_path / "x.pth"
    save_checkpoint(checkpoint, path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match="is not a checkpoint, or is damaged"):
        load_checkpoint(path)


@pytest.mark.parametrize("content", [{"weights": {}}, [1, 2], {"format": "another"}])
def test_another_program_s_file_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "x.pth")
    with pytest.raises(UserError, match="is not a checkpoint of maml_l2l"):
        load_checkpoint(tmp_path / "x.pth")


def test_a_newer_format_is_refused(tmp_path):
    torch.save({"format": FORMAT, "version": VERSION + 1}, tmp_path / "x.pth")
    with pytest.raises(UserError, match=f"has checkpoint version {VERSION + 1}, this maml_l2l reads version {VERSION}"):
        load_checkpoint(tmp_path / "x.pth")


@pytest.mark.parametrize("protocol", [2, 4])
def test_a_pickle_that_would_run_code_is_refused_and_does_not_run(tmp_path, protocol):
    class Payload:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "pwned"),)

    content = {"format": FORMAT, "version": VERSION, "weights": Payload()}
    torch.save(content, tmp_path / "x.pth", pickle_protocol=protocol)
    with pytest.raises(UserError, match=r"x.pth holds objects that could run code when loaded, such as .*Give the"):
        load_checkpoint(tmp_path / "x.pth")
    assert not (tmp_path / "pwned").exists()


def optimizer_state(**changes):
    """The state dict of Adam over the fixture's network after one step, with `changes` to its parts."""
    network = Conv4(**BACKBONE)
    optimizer = torch.optim.Adam(network.parameters())
    network(torch.rand(5, 1, 28, 28)).sum().backward()
    optimizer.step()
    content = optimizer.state_dict()
    for key, value in changes.items():
        content["param_groups"][0][key] = value
    return content


def adam_state(**changes):
    content = optimizer_state()
    content["state"][0].update(changes)
    return content


def test_a_checkpoint_with_an_optimizer_is_loaded(checkpoint, tmp_path):
    saved = dataclasses.replace(checkpoint, optimizer=optimizer_state())
    save_checkpoint(saved, tmp_path / "x.pth")
    loaded = load_checkpoint(tmp_path / "x.pth").optimizer
    assert loaded["param_groups"] == saved.optimizer["param_groups"]
    assert torch.equal(loaded["state"][3]["exp_avg"], saved.optimizer["state"][3]["exp_avg"])
    torch.optim.Adam(Conv4(**BACKBONE).parameters()).load_state_dict(loaded)


class WithAttributes(OrderedDict):
    """A state dict that carries attributes, as any pickle may set them."""

    def __init__(self, content, **attributes):
        super().__init__(content)
        self.attributes = attributes

    def __reduce__(self):
        return OrderedDict, (list(self.items()),), self.attributes


def test_attributes_of_a_state_dict_are_left_behind(checkpoint, tmp_path):
    hostile = WithAttributes(checkpoint.weights, _metadata=5)
    write_unchecked(dataclasses.replace(checkpoint, weights=hostile), tmp_path / "x.pth")
    assert load_checkpoint(tmp_path / "x.pth").learner().module.state_dict().keys() == checkpoint.weights.keys()


def test_a_state_dict_with_a_hidden_method_is_refused(checkpoint, tmp_path):
    hostile = WithAttributes(checkpoint.weights, items=5)
    write_unchecked(dataclasses.replace(checkpoint, weights=hostile), tmp_path / "x.pth")
    with pytest.raises(UserError, match=r"x.pth is not a valid checkpoint: `weights` should be a valid mapping"):
        load_checkpoint(tmp_path / "x.pth")


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("config", {"task": {"way": 5}}, r"^the config in .*x.pth: unknown key `task.way` \(did you mean `task.ways`"),
        ("config", {"task": 5}, r"x.pth is not a valid checkpoint: `config.task` should be a section of keys, found 5"),
        ("config", [], r"`config` should be a section of keys, found \[\]"),
        ("split", {"train": ["a"], "val": ["b"]}, r"`split` should name the classes of train, val, test, found \['tra"),
        ("split", {"train": ["a"], "val": ["b"], "test": ["a"]}, "`split` should name each class once, and names 'a'"),
        ("split", {"train": ["a"], "val": [1], "test": []}, r"`split.val.0` should be a valid string, found 1"),
        ("iteration", -1, "`iteration` should be a finite number that is not negative, found -1"),
        ("iteration", 2**70, "`iteration` should be a finite number that is not negative"),
        ("iteration", True, "`iteration` should be a valid integer, found True"),
        ("validation_accuracy", math.nan, "`validation_accuracy` should be a finite number .* found nan"),
        ("backbone", BACKBONE | {"filters": 10**9}, "`backbone.filters` should be less than or equal to 1024"),
        ("backbone", BACKBONE | {"way": 5}, r"unknown key `backbone.way` \(did you mean `backbone.ways`"),
        ("backbone", {"ways": 5}, "`backbone.channels` is missing"),
        ("backbone", BACKBONE | {"ways": 4}, r"`weights.head.weight` should have the shape \(4, 4\), found \(5, 4\)"),
        (
            "backbone",
            BACKBONE | {"downsample": "max_pool"},
            "`backbone.downsample` should be 'stride', as its config says, found",
        ),
        (
            "config",
            {**EXPERIMENT.model_dump(), "model": {"name": "mlp", "filters": 4}},
            "`backbone.name` should be 'mlp', as its config says, found 'conv4'",
        ),
        ("config", {"eval": {"steps": 10**6}}, "`eval.steps` should be less than or equal to 1000, found 1000000"),
        (
            "config",
            {"algorithm": {"inner_steps": 10**6}},
            "`algorithm.inner_steps` should be less than or equal to 1000",
        ),
        (
            "config",
            {"data": {"image_size": 10**5}},
            "`data.image_size` should be less than or equal to 1024, found 1000",
        ),
        ("weights", {}, r"`weights` lacks \['convolutions.0.bias', .* and holds the unknown \[\]"),
        ("weights", {"head.bias": [1.0]}, r"`weights.head.bias` should be an instance of Tensor"),
        ("optimizer", {"state": {}}, "`optimizer.param_groups` is missing"),
        ("optimizer", {"state": {}, "param_groups": []}, "`optimizer.param_groups` should be one group with the"),
        ("optimizer", optimizer_state(betas=(0.9, 1.0)), "`optimizer.param_groups` should be one group with the"),
        ("optimizer", optimizer_state(lr=math.inf), "`optimizer.param_groups.lr` should be a finite .*found inf"),
        ("optimizer", optimizer_state(params=[0]), "`optimizer.param_groups` should be one group with the"),
        ("optimizer", adam_state(exp_avg=torch.zeros(3)), r"`optimizer.state.0.exp_avg` should have the shape \(4, 1,"),
        ("optimizer", adam_state(step=torch.tensor(-1.0)), r"`optimizer.state.0.step` should not be negative, found -"),
        ("optimizer", {**optimizer_state(), "state": {99: {}}}, "`optimizer.state.99` is of none of the 18"),
    ],
)
def test_contents_that_do_not_fit_are_refused_with_path_field_and_value(checkpoint, tmp_path, field, value, message):
    assert_refused(dataclasses.replace(checkpoint, **{field: value}), tmp_path / "x.pth", message)


@pytest.mark.parametrize(
    ("bias", "message"),
    [
        (torch.tensor([0.0, 0.0, math.nan, 0.0, 0.0]), "should hold finite floating-point numbers"),
        (torch.zeros(5, dtype=torch.int64), "should hold finite floating-point numbers"),
        (torch.zeros(1).expand(2**40), r"should have the shape \(5,\), found \(1099511627776,\)"),
        (torch.zeros(1).expand(5), "should have as many numbers as its shape says, found fewer"),
    ],
    ids=["nan", "integers", "huge", "one number for all"],
)
def test_weights_that_do_not_fit_are_refused(checkpoint, tmp_path, bias, message):
    weights = checkpoint.weights | {"head.bias": bias}
    refused = dataclasses.replace(checkpoint, weights=weights)
    assert_refused(refused, tmp_path / "x.pth", f"`weights.head.bias` {message}")


def test_missing_and_unknown_fields_are_named(checkpoint, tmp_path):
    content = {"format": FORMAT, "version": VERSION, **vars(checkpoint), "more": 1}
    del content["split"]
    torch.save(content, tmp_path / "x.pth")
    with pytest.raises(UserError, match=r"it lacks the fields \['split'\] and holds the unknown fields \['more'\]"):
        load_checkpoint(tmp_path / "x.pth")


def test_a_flipped_bit_in_the_weights_is_noticed(checkpoint, tmp_path):
    path = tmp_path / "x.pth"
    save_checkpoint(checkpoint, path)
    content = bytearray(path.read_bytes())
    content[content.index(checkpoint.weights["head.weight"].numpy().tobytes()) + 2] ^= 1
    path.write_bytes(content)
    assert isinstance(torch.load(path, weights_only=True), dict)  # PyTorch does not notice
    with pytest.raises(UserError, match="is not a checkpoint, or is damaged"):
        load_checkpoint(path)


def test_a_zip_bomb_is_refused_before_it_is_unpacked(checkpoint, tmp_path):
    path = tmp_path / "x.pth"
    zeros = {
        name: torch.zeros_like(weight) for name, weight in Conv4(**BACKBONE | {"filters": 64}).state_dict().items()
    }
    config = Experiment().model_dump()
    save_checkpoint(
        dataclasses.replace(checkpoint, config=config, weights=zeros, backbone=BACKBONE | {"filters": 64}), path
    )
    load_checkpoint(path)
    with zipfile.ZipFile(path) as file:
        entries = {info.filename: file.read(info) for info in file.infolist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in entries.items():
            file.writestr(name, content)
    with pytest.raises(UserError, match="is not a checkpoint, or is damaged"):
        load_checkpoint(path)


def test_a_file_too_large_to_be_a_checkpoint_is_not_read(tmp_path):
    with open(tmp_path / "x.pth", "wb") as file:
        file.truncate(MAX_BYTES + 1)  # a hole, which takes no room on the disk
    with pytest.raises(UserError, match=r"x.pth is larger than 1073741824 bytes, which no checkpoint is. Give the"):
        load_checkpoint(tmp_path / "x.pth")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes in this system's folders")
def test_a_pipe_is_refused_instead_of_waited_for(tmp_path):
    os.mkfifo(tmp_path / "x.pth")
    with pytest.raises(UserError, match=r"cannot read the checkpoint .*: it is a pipe, a device or a socket"):
        load_checkpoint(tmp_path / "x.pth")


def test_a_failed_save_leaves_the_old_checkpoint(checkpoint, tmp_path, monkeypatch):
    path = tmp_path / "x.pth"
    save_checkpoint(checkpoint, path)
    before = path.read_bytes()

    def full_disk(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(UserError, match=r"cannot write .*x\.pth: No space left on device"):
        save_checkpoint(checkpoint, path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
