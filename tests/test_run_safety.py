"""What stands in a run folder is never lost, and nothing outside of it is written, whatever lies there."""

import contextlib
import dataclasses
import json
import os
import signal
import stat
import sys
from pathlib import Path

import pytest

from maml_l2l.checkpoints.checkpoint import load_checkpoint
from maml_l2l.config import load_experiment
from maml_l2l.experiments import resuming, run_folder, training
from maml_l2l.experiments.training import train
from maml_l2l.system.errors import Stopped, UserError
from tests.commands import assert_user_error, run
from tests.test_training import TINY, metrics

FILES = ["config.yaml", "last.pth", "previous.pth", "best.pth", "sessions.json", "metrics.jsonl", "curves.png"]
LINES = [b"not json\n", b"[1, 2]\n", b'{"iteration": "x", "loss": {}}\n', b"\xff\n", b"[" * 9999]
SHORT = [*TINY, "train.iterations=2", "train.validate_every=1", "train.validate_tasks=2", "run.threads=1"]
posix = pytest.mark.skipif(sys.platform == "win32", reason="links, pipes and rights as POSIX has them")


@pytest.fixture(scope="module")
def experiment(glyphs_root):
    return load_experiment(None, [*SHORT, f"data.root={glyphs_root}"])


@pytest.fixture(scope="module")
def longer(experiment):
    """The same run, one meta-iteration longer: resuming it does something."""
    return experiment.model_copy(update={"train": experiment.train.model_copy(update={"iterations": 3})})


@pytest.fixture(scope="module")
def finished(experiment, tmp_path_factory):
    """The files of a finished run, by name."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    train(experiment, folder)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def folder(finished, tmp_path):
    """A finished run of its own."""
    (tmp_path / "run").mkdir()
    for name, content in finished.items():
        (tmp_path / "run" / name).write_bytes(content)
    return tmp_path / "run"


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


# --- runs that start in one folder ---


def test_a_run_that_still_loads_its_data_keeps_others_out(experiment, tmp_path, monkeypatch):
    load, tried = training.load_data, []

    def slow(data):
        if not tried:
            tried.append(True)
            with pytest.raises(UserError, match=r"another process is writing to .*run\. Stop it first"):
                train(experiment, tmp_path / "run")
        return load(data)

    monkeypatch.setattr(training, "load_data", slow)
    train(experiment, tmp_path / "run")
    assert tried and len(json.loads((tmp_path / "run/sessions.json").read_text())) == 1


def test_a_run_that_ends_just_before_another_starts_is_not_overwritten(experiment, tmp_path, monkeypatch):
    claim, kept = resuming.claimed, {}

    @contextlib.contextmanager
    def late(path, *arguments, **options):
        if not kept:
            kept["run"] = None
            train(experiment, path)
            kept["run"] = contents(path)
        with claim(path, *arguments, **options):
            yield

    monkeypatch.setattr(resuming, "claimed", late)
    with pytest.raises(UserError, match="already holds a run, which is never overwritten"):
        train(experiment, tmp_path / "run")
    assert contents(tmp_path / "run") == kept["run"]


def test_a_start_that_comes_to_nothing_leaves_no_folder(experiment, tmp_path, monkeypatch):
    def refuse(_):
        raise UserError("no data")

    monkeypatch.setattr(training, "load_data", refuse)
    with pytest.raises(UserError, match="no data"):
        train(experiment, tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "name", ["best.pth", "last.pth", "previous.pth", "metrics.jsonl", "sessions.json", "curves.png"]
)
def test_somebody_s_own_files_are_not_overwritten(experiment, tmp_path, name):
    (tmp_path / name).write_text("mine")
    with pytest.raises(UserError, match=f"already holds {name}, which a run would overwrite. Move that away"):
        train(experiment, tmp_path)
    assert contents(tmp_path) == {name: b"mine"}


def test_a_run_whose_config_was_moved_away_is_not_overwritten(experiment, folder):
    (folder / "config.yaml").unlink()
    before = contents(folder)
    with pytest.raises(UserError, match=r"already holds last.pth, previous.pth, best.pth, sess"):
        train(experiment, folder)
    assert contents(folder) == before


def test_only_own_temporary_files_are_removed(experiment, longer, folder):
    (folder / ".notes.tmp").write_text("mine")
    (folder / ".x.tmp").mkdir()
    (folder / ".last.pth.0123abcd.tmp").write_text("left by a killed process")
    train(longer, folder, resume=True)
    assert (folder / ".notes.tmp").read_text() == "mine"
    assert (folder / ".x.tmp").is_dir()
    assert not (folder / ".last.pth.0123abcd.tmp").exists() or sys.platform == "win32"


# --- second paths ---


@pytest.mark.parametrize("name", ["config.yaml", "last.pth", "metrics.jsonl", "sessions.json", "curves.png", ".lock"])
def test_the_run_s_own_files_are_no_second_path(experiment, tmp_path, name):
    with pytest.raises(UserError, match=rf"cannot write .*{name}: it is read, and would be lost"):
        train(experiment, tmp_path / "run", tmp_path / "run" / name)
    assert not (tmp_path / "run").exists()


def test_the_pretrained_checkpoint_is_no_second_path(experiment, folder, tmp_path):
    best = folder / "best.pth"
    before = best.read_bytes()
    model = experiment.model.model_copy(update={"pretrained": str(best)})
    with pytest.raises(UserError, match=r"cannot write .*best.pth: it is read, and would be lost"):
        train(experiment.model_copy(update={"model": model}), tmp_path / "new", best)
    assert best.read_bytes() == before


def test_the_config_is_no_second_path(tmp_path):
    (tmp_path / "c.yaml").write_text("task: {ways: 3}")
    done = run("maml_l2l.train", "--config", "c.yaml", "--save_to", "c.yaml", folder=tmp_path)
    assert_user_error(done, "cannot write c.yaml: it is read, and would be lost. Name another file.")
    assert (tmp_path / "c.yaml").read_text() == "task: {ways: 3}"


# --- what is missing or damaged when a run goes on ---


def test_best_is_made_anew_where_it_is_gone(experiment, folder, tmp_path):
    (folder / "best.pth").unlink()
    with pytest.warns(UserWarning, match=r"there is no checkpoint .*best.pth.* meta-iteration 2 stand in"):
        train(experiment, folder, tmp_path / "copy.pth", resume=True)
    assert load_checkpoint(folder / "best.pth").iteration == load_checkpoint(tmp_path / "copy.pth").iteration == 2


def test_a_damaged_best_is_set_aside_and_the_next_validation_takes_its_place(longer, folder):
    (folder / "best.pth").write_bytes(b"damaged")
    with pytest.warns(UserWarning, match=r"best.pth is not a checkpoint, or is damaged.* stand in for it"):
        train(longer, folder, resume=True)
    assert load_checkpoint(folder / "best.pth").iteration == 3
    assert (folder / "best.pth.damaged").read_bytes() == b"damaged"


def test_best_in_place_of_last_is_told_apart(experiment, folder):
    (folder / "last.pth").write_bytes((folder / "best.pth").read_bytes())
    with pytest.warns(UserWarning, match=r"last.pth lacks the state of the optimizer, as a best.*Resuming"):
        train(experiment, folder, resume=True)
    assert load_checkpoint(folder / "last.pth").optimizer is not None


def test_what_was_damaged_before_is_kept_too(experiment, folder):
    (folder / "last.pth.damaged").mkdir()
    (folder / "last.pth").write_bytes(b"damaged")
    with pytest.warns(UserWarning, match=r"It is kept as last.pth.damaged1. Resuming from previous.pth"):
        train(experiment, folder, resume=True)
    assert (folder / "last.pth.damaged1").read_bytes() == b"damaged"


def test_a_checkpoint_that_may_not_be_read_is_not_called_damaged(experiment, folder, monkeypatch):
    from maml_l2l.system import torch_files

    def refused(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(torch_files, "open_regular", refused)
    with pytest.raises(UserError, match=r"cannot read the checkpoint .*last.pth: Permission denied"):
        train(experiment, folder, resume=True)
    assert (folder / "last.pth").exists() and not (folder / "last.pth.damaged").exists()


@pytest.mark.parametrize("line", LINES)
def test_a_bad_line_of_metrics_is_left_out_of_the_curves(longer, folder, line):
    path = folder / "metrics.jsonl"
    content = path.read_bytes()
    path.write_bytes((line + content[len(line) :])[: len(content) - 1] + b"\n")
    (folder / "curves.png").unlink()
    train(longer, folder, resume=True)
    assert load_checkpoint(folder / "last.pth").iteration == 3
    assert (folder / "curves.png").exists()


def test_curves_that_cannot_be_drawn_cost_a_warning(longer, folder, monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("no fonts")

    monkeypatch.setattr("maml_l2l.experiments.run_folder.plot_curves", broken)
    with pytest.warns(UserWarning, match="the curves could not be drawn: no fonts"):
        train(longer, folder, resume=True)
    assert load_checkpoint(folder / "last.pth").iteration == 3


@pytest.mark.parametrize(
    ("seconds", "error", "drawings"),
    [
        (0, None, 2),
        (1000, None, 1),
        (1000, Stopped("stopped", signal.SIGTERM), 1),
        (1000, RuntimeError("a fault"), 0),
    ],
)
def test_curves_are_drawn_now_and_then_and_at_the_end(experiment, tmp_path, monkeypatch, seconds, error, drawings):
    drawn = []
    monkeypatch.setattr(run_folder, "_SECONDS_BETWEEN_CURVES", seconds)
    monkeypatch.setattr(run_folder, "plot_curves", lambda *_, **__: drawn.append(None))
    if error is None:
        train(experiment, tmp_path / "run")  # of two validations
    else:
        monkeypatch.setattr(run_folder.RunFolder, "save_last", raise_at_the_end(error))
        with pytest.raises(type(error)):
            train(experiment, tmp_path / "run")
    assert len(drawn) == drawings


def raise_at_the_end(error):
    def save_last(_, checkpoint):
        if checkpoint.iteration:
            raise error

    return save_last


def test_metrics_that_are_gone_cost_a_warning(longer, folder):
    size = (folder / "metrics.jsonl").stat().st_size
    (folder / "metrics.jsonl").unlink()
    with pytest.warns(UserWarning, match=f"metrics.jsonl has lost its last {size} bytes since the run was saved"):
        train(longer, folder, resume=True)
    assert [line["iteration"] for line in metrics(folder)] == [3, 3]


def test_a_size_that_no_file_has_is_not_read(longer, folder):
    from maml_l2l.checkpoints.checkpoint import save_checkpoint

    saved = load_checkpoint(folder / "last.pth")
    save_checkpoint(dataclasses.replace(saved, metrics_bytes=2**62), folder / "last.pth")
    with pytest.warns(UserWarning, match="has lost its last"):
        train(longer, folder, resume=True)


def test_a_folder_deleted_while_training_is_one_clear_error(experiment, tmp_path, monkeypatch):
    import shutil

    validate = training.MetaTrainer.validate

    def deleting(self):
        shutil.rmtree(tmp_path / "run")
        return validate(self)

    monkeypatch.setattr(training.MetaTrainer, "validate", deleting)
    with pytest.raises(UserError, match=r"cannot write .*best.pth: No such file or directory"):
        train(experiment, tmp_path / "run")


@pytest.mark.parametrize("content", [b"[" * 5000, b"[[1]]", b'{"job": 1}', b"\xff\xfe", b"[1, 2]"])
def test_odd_sessions_cost_a_warning(longer, folder, content):
    (folder / "sessions.json").write_bytes(content)
    with pytest.warns(UserWarning, match=r"sessions.json is damaged: the times of earlier sessions are lost"):
        train(longer, folder, resume=True)
    assert len(json.loads((folder / "sessions.json").read_text())) == 1


def test_only_the_job_that_started_a_run_goes_on_with_it_unasked(folder):
    entry = json.loads((folder / "sessions.json").read_text())[-1]
    (folder / "sessions.json").write_text(json.dumps([entry | {"job": "mine"}]))
    assert resuming.started_by(folder, "mine")
    assert not resuming.started_by(folder, "another")
    assert not resuming.started_by(folder, None)
    (folder / "sessions.json").unlink()
    assert not resuming.started_by(folder, "mine")


# --- links, folders and pipes in place of files ---


@posix
@pytest.mark.parametrize("name", ["metrics.jsonl", "tensorboard", ".lock"])
def test_nothing_is_written_through_links(longer, folder, tmp_path, name):
    target = tmp_path / "outside"
    target.mkdir() if name == "tensorboard" else target.write_text("precious\n")
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to(target)
    settings = longer.model_copy(update={"run": longer.run.model_copy(update={"tensorboard": name == "tensorboard"})})
    with pytest.raises(UserError, match=rf"{name} is a link, and nothing is written through links"):
        train(settings, folder, resume=True)
    assert list(target.iterdir()) == [] if target.is_dir() else target.read_text() == "precious\n"


@posix
@pytest.mark.parametrize(
    "name", ["metrics.jsonl", "sessions.json", "config.yaml", "last.pth", "curves.png", "best.pth"]
)
@pytest.mark.parametrize("kind", ["pipe", "folder"])
def test_pipes_and_folders_in_place_of_files_are_refused_at_once(longer, folder, name, kind):
    (folder / name).unlink()
    os.mkfifo(folder / name) if kind == "pipe" else (folder / name).mkdir()
    with pytest.raises(UserError, match=rf"the run cannot use .*{name}: it is a {kind}.* Move it away"):
        train(longer, folder, resume=True)


@posix
def test_a_config_that_is_a_pipe_is_refused_instead_of_waited_for(tmp_path):
    os.mkfifo(tmp_path / "c.yaml")
    with pytest.raises(UserError, match=r"cannot read the config .*c.yaml: it is a pipe"):
        load_experiment(tmp_path / "c.yaml")


@posix
def test_files_have_the_rights_that_the_umask_leaves_and_old_ones_keep_theirs(experiment, tmp_path):
    (tmp_path / "secret.pth").touch(mode=0o600)
    before = os.umask(0o077)
    try:
        train(experiment, tmp_path / "run", tmp_path / "secret.pth")
        os.umask(0o022)
        train(experiment.model_copy(), tmp_path / "open", tmp_path / "secret.pth")
    finally:
        os.umask(before)

    def rights(path: Path):
        return stat.S_IMODE(path.stat().st_mode)

    assert {name: rights(tmp_path / "run" / name) & 0o077 for name in contents(tmp_path / "run")} == dict.fromkeys(
        contents(tmp_path / "run"), 0
    )
    names = set(contents(tmp_path / "open")) - {".lock"}
    assert {rights(tmp_path / "open" / name) for name in names} == {0o644}
    assert rights(tmp_path / "secret.pth") == 0o600
