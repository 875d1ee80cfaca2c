"""Checkpoints: what goes in comes out, and what is not one is refused in one sentence."""

import os

import pytest
import torch

from maml_l2l.backbones import Conv4
from maml_l2l.checkpoint import FORMAT, VERSION, Checkpoint, load_checkpoint, save_checkpoint
from maml_l2l.config import Experiment
from maml_l2l.errors import UserError


@pytest.fixture
def checkpoint():
    torch.manual_seed(0)
    backbone = {"ways": 5, "channels": 1, "filters": 4, "downsample": "stride"}
    return Checkpoint(
        config=Experiment().model_dump(),
        split={"train": ["a"], "val": ["b"], "test": ["c"]},
        iteration=7,
        validation_accuracy=51.5,
        backbone=backbone,
        weights=Conv4(**backbone).state_dict(),
        optimizer=None,
    )


def test_what_is_saved_is_loaded(checkpoint, tmp_path):
    save_checkpoint(checkpoint, tmp_path / "x.pth")
    loaded = load_checkpoint(tmp_path / "x.pth")
    assert loaded.experiment == Experiment()
    assert (loaded.split, loaded.iteration, loaded.validation_accuracy) == (checkpoint.split, 7, 51.5)
    for name, weight in loaded.learner().module.state_dict().items():
        assert torch.equal(weight, checkpoint.weights[name])


def test_the_backbone_loads_in_plain_pytorch(checkpoint, tmp_path):
    save_checkpoint(checkpoint, tmp_path / "x.pth")
    content = torch.load(tmp_path / "x.pth", weights_only=True)
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
    with pytest.raises(UserError, match="is not a checkpoint, or is damaged"):
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


def test_a_pickle_that_would_run_code_is_refused_and_does_not_run(tmp_path):
    class Payload:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "pwned"),)

    torch.save({"format": FORMAT, "version": VERSION, "weights": Payload()}, tmp_path / "x.pth")
    with pytest.raises(UserError, match="is not a checkpoint, or is damaged"):
        load_checkpoint(tmp_path / "x.pth")
    assert not (tmp_path / "pwned").exists()


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
