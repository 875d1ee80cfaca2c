"""Never lose a run: killed, interrupted, full disks, damaged files; what is resumed ends as if nothing had happened."""

import dataclasses
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import contextmanager

import pytest
import torch

from maml_l2l.checkpoints.checkpoint import load_checkpoint, save_checkpoint
from maml_l2l.config import load_experiment
from maml_l2l.data.glyphs import load_glyphs
from maml_l2l.experiments import run_folder
from maml_l2l.experiments.resuming import claimed
from maml_l2l.experiments.trainer import MetaTrainer
from maml_l2l.experiments.training import train
from maml_l2l.system import files
from maml_l2l.system.errors import Stopped, UserError
from maml_l2l.system.interruption import StopRequests
from tests.commands import loaded, started, wait_for_metrics
from tests.test_training import TINY, metrics

RUN = [*TINY, "run.threads=1", "train.iterations=24", "train.validate_every=5", "train.checkpoint_every=1"]
RESULTS = ("last.pth", "best.pth", "metrics.jsonl", "curves.png", "config.yaml")


@pytest.fixture(scope="module")
def overrides(glyphs_root):
    return [*RUN, f"data.root={glyphs_root}"]


@pytest.fixture(scope="module")
def uninterrupted(overrides, tmp_path_factory):
    folder = tmp_path_factory.mktemp("uninterrupted") / "run"
    train(load_experiment(None, overrides), folder)
    return folder


def resume(overrides, folder):
    train(load_experiment(None, overrides), folder, resume=True)


def assert_same_run(folder, expected):
    for name in RESULTS:
        assert (folder / name).read_bytes() == (expected / name).read_bytes(), name
    assert not list(folder.glob(".*.tmp"))


def die_at(call):
    """Have this process killed at the `call`-th step of writing a file: on the way, and before and after renames."""
    count = 0

    def counted(function):
        def step(*arguments):
            nonlocal count
            count += 1
            if count == call:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments)

        return step

    for name in ("fsync", "fchmod", "replace"):
        setattr(os, name, counted(getattr(os, name)))


def train_in_process(overrides, folder, call=None):
    """What a child runs: start the run, or go on with it."""
    if call is not None:
        die_at(call)
    train(load_experiment(None, overrides), folder, resume=(folder / "config.yaml").exists())


def start(*arguments):
    process = loaded.Process(target=train_in_process, args=arguments)
    process.start()
    return process


@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX processes")
def test_a_run_killed_at_random_moments_ends_as_one_never_stopped(overrides, uninterrupted, tmp_path):
    for name in ("first", "timed"):  # the first one starts the server, too
        began = time.monotonic()
        start(overrides, tmp_path / name / "run").join()
        whole = time.monotonic() - began
    moments, killed, folders = random.Random(5), 0, itertools.count()
    while killed < 6:
        folder, exitcode = tmp_path / str(next(folders)) / "run", None
        while exitcode != 0:
            process = start(overrides, folder)
            process.join(moments.uniform(0, whole))
            process.kill()
            process.join()
            exitcode = process.exitcode
            assert exitcode in (0, -signal.SIGKILL)
            killed += exitcode != 0
        assert_same_run(folder, uninterrupted)


@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX processes")
def test_a_run_killed_at_every_step_of_writing_a_file_ends_as_one_never_stopped(overrides, uninterrupted, tmp_path):
    """A start writes the config, the session and a checkpoint: 14 steps reach into the next checkpoint's writing."""
    folder = tmp_path / "run"
    for call in range(1, 15):
        process = start(overrides, folder, call)
        process.join()
        assert process.exitcode == -signal.SIGKILL
    resume(overrides, folder)
    assert_same_run(folder, uninterrupted)


def same_state(found, expected):
    """Whether two checkpoints hold the same weights and optimizer state, to the bit."""
    pairs = [(found.weights[name], expected.weights[name]) for name in expected.weights]
    for number, state in expected.optimizer["state"].items():
        pairs += [(found.optimizer["state"][number][name], state[name]) for name in state]
    return all(torch.equal(*pair) for pair in pairs)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_signal_saves_what_was_done_and_says_how_to_resume(overrides, tmp_path, number, workers):
    folder = tmp_path / "run"
    endless = [*overrides, "train.iterations=100000", "run.compile=false", "train.checkpoint_every=7"]
    endless += [f"run.workers={workers}"]
    copy = tmp_path / "a copy.pth"
    command = ["maml_l2l.train", "--set", *endless, "--run_dir", folder, "--save_to", copy]
    with started(*command) as (process, finish):
        wait_for_metrics(folder, 7)
        if number == signal.SIGINT:  # a terminal sends it to all of the run's processes
            os.killpg(process.pid, number)
        else:
            os.kill(process.pid, number)
        done = finish()
        with pytest.raises(ProcessLookupError):
            os.killpg(process.pid, 0)
    assert done.returncode == 128 + number
    error = done.stderr
    assert f"stopped by {number.name}: python -m maml_l2l.train --resume {folder} --save_to '{copy}' goes on" in error
    assert "Traceback" not in error
    saved = load_checkpoint(folder / "last.pth")
    train(load_experiment(None, [*overrides, f"train.iterations={saved.iteration}"]), tmp_path / "straight")
    assert same_state(saved, load_checkpoint(tmp_path / "straight" / "last.pth"))
    lines = [line for line in metrics(tmp_path / "straight") if line["iteration"] <= saved.iteration]
    found = metrics(folder)
    assert found == lines[: len(found)]
    assert [line["iteration"] for line in found if "loss" in line] == list(range(1, saved.iteration + 1))


def test_a_second_ctrl_c_is_a_keyboard_interrupt_there_and_then():
    """In a notebook it must not end the kernel, and with it all that the user has in memory."""
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt) as caught, StopRequests("go on") as stop:
        stop.at_once = False
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.signal_number == signal.SIGINT
        os.kill(os.getpid(), signal.SIGINT)
        raise AssertionError("it went on")
    assert not isinstance(caught.value, Stopped)
    assert signal.getsignal(signal.SIGINT) is before


def test_a_training_that_is_interrupted_twice_leaves_whole_files_and_no_traceback(overrides, tmp_path):
    folder = tmp_path / "run"
    endless = [*overrides, "train.iterations=100000", "run.compile=false", "run.workers=2"]
    with started("maml_l2l.train", "--set", *endless, "--run_dir", folder) as (process, finish):
        wait_for_metrics(folder, 3)
        for _ in range(2):
            os.killpg(process.pid, signal.SIGINT)
        done = finish(timeout=60)
        with pytest.raises(ProcessLookupError):
            os.killpg(process.pid, 0)
    assert done.returncode == 130
    assert "Traceback" not in done.stderr
    assert load_checkpoint(folder / "last.pth").iteration > 0


def test_a_signal_before_anything_is_done_stops_there_and_then(overrides, tmp_path, monkeypatch):
    """While the engine compiles, for example, which takes minutes."""

    def interrupted(*_):
        os.kill(os.getpid(), signal.SIGTERM)
        raise AssertionError("it went on")

    monkeypatch.setattr(MetaTrainer, "_meta_gradient", interrupted)
    with pytest.raises(Stopped, match=r"stopped by SIGTERM: .*--resume"):
        train(load_experiment(None, overrides), tmp_path / "run")
    assert load_checkpoint(tmp_path / "run" / "last.pth").iteration == 0
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


@pytest.fixture
def half(overrides, tmp_path, monkeypatch):
    """A run stopped by a signal after 12 of its 24 meta-iterations."""
    log = run_folder.RunFolder.log

    def stopping_log(self, iteration, **values):
        log(self, iteration, **values)
        if iteration == 12 and "loss" in values:
            os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(run_folder.RunFolder, "log", stopping_log)
        train(load_experiment(None, overrides), tmp_path / "run")
    assert load_checkpoint(tmp_path / "run" / "last.pth").iteration == 12
    return tmp_path / "run"


def test_a_stopped_run_goes_on_and_ends_as_one_never_stopped(half, overrides, uninterrupted):
    resume(overrides, half)
    assert_same_run(half, uninterrupted)


def test_a_finished_run_may_be_extended(half, overrides, tmp_path):
    resume(overrides, half)
    longer = [*overrides, "train.iterations=31"]
    resume(longer, half)
    train(load_experiment(None, longer), tmp_path / "straight")
    assert same_state(load_checkpoint(half / "last.pth"), load_checkpoint(tmp_path / "straight" / "last.pth"))


def test_learned_step_sizes_are_resumed_too(overrides, tmp_path):
    learning = [*overrides, "algorithm.learn_inner_lr=true", "algorithm.inner_steps=2"]
    for folder, lengths in (("straight", [9]), ("resumed", [4, 9])):
        for length in lengths:
            experiment = load_experiment(None, [*learning, f"train.iterations={length}"])
            train(experiment, tmp_path / folder, resume=length > lengths[0])
    straight, resumed = (load_checkpoint(tmp_path / name / "last.pth") for name in ("straight", "resumed"))
    assert same_state(straight, resumed)
    assert torch.equal(straight.inner_lrs, resumed.inner_lrs)
    assert straight.inner_lrs.unique().numel() > 10


def test_another_config_is_refused_with_the_keys_that_differ(half, overrides):
    before = {path: path.read_bytes() for path in half.iterdir()}
    message = r"another config: `task.shots` was 1, found 2; `algorithm.inner_lr` was 0.4, found 0.1\. Put the values"
    with pytest.raises(UserError, match=message):
        resume([*overrides, "task.shots=2", "algorithm.inner_lr=0.1"], half)
    with pytest.raises(UserError, match=r"`train.iterations` was 24, found 20"):
        resume([*overrides, "train.iterations=20"], half)
    assert {path: path.read_bytes() for path in half.iterdir()} == before


def test_how_often_things_are_written_and_who_draws_tasks_may_change(half, overrides, uninterrupted):
    resume([*overrides, "train.checkpoint_every=9", "train.validate_every=6", "run.workers=1"], half)
    assert same_state(load_checkpoint(half / "last.pth"), load_checkpoint(uninterrupted / "last.pth"))


def test_a_folder_without_a_run_is_refused(overrides, tmp_path):
    with pytest.raises(UserError, match=r"run holds no run to resume. Start it without --resume"):
        resume(overrides, tmp_path / "run")


DAMAGE = {
    "truncated": lambda content: content[: len(content) // 2],
    "empty": lambda content: b"",
    "one flipped bit": lambda content: (
        content[: len(content) // 2] + bytes([content[len(content) // 2] ^ 4]) + content[len(content) // 2 + 1 :]
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_it_used(half, overrides, uninterrupted, damage):
    damaged = DAMAGE[damage]((half / "last.pth").read_bytes())
    (half / "last.pth").write_bytes(damaged)
    with pytest.warns(
        UserWarning, match=r"last.pth is .*damaged.*Resuming from previous.pth, meta-iteration 11, instead"
    ):
        resume(overrides, half)
    assert (half / "last.pth.damaged").read_bytes() == damaged
    assert_same_run(half, uninterrupted)


def test_two_damaged_checkpoints_are_an_error_and_never_a_new_start(half, overrides):
    for name in ("last.pth", "previous.pth"):
        (half / name).write_bytes(b"")
    with pytest.raises(UserError, match=r"cannot be resumed: .*last.pth is .*damaged.*previous.pth is .*damaged"):
        resume(overrides, half)
    assert len(metrics(half)) == 14


def test_checkpoints_that_are_gone_are_an_error_and_never_a_new_start(half, overrides):
    for name in ("last.pth", "previous.pth"):
        (half / name).unlink()
    with pytest.raises(UserError, match=r"cannot be resumed: its checkpoints last.pth and previous.pth are gone"):
        resume(overrides, half)
    assert len(metrics(half)) == 14


def test_lost_metrics_are_reported(half, overrides):
    path = half / "metrics.jsonl"
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.warns(UserWarning, match=r"metrics.jsonl has lost its last 50 bytes"):
        resume(overrides, half)


def test_every_session_leaves_its_time_and_its_machine(half, overrides):
    resume(overrides, half)
    first, second = json.loads((half / "sessions.json").read_text())
    assert [(part["from"], part["to"]) for part in (first, second)] == [(0, 12), (12, 24)]
    assert first["seconds"] > 0 < second["seconds"]
    assert first["versions"] == second["versions"]
    (half / "sessions.json").write_text('[{"fr')
    with pytest.warns(UserWarning, match=r"sessions.json is damaged: the times of earlier sessions are lost"):
        resume([*overrides, "train.iterations=25"], half)
    (third,) = json.loads((half / "sessions.json").read_text())
    assert (third["from"], third["to"]) == (24, 25)


def test_a_folder_in_use_is_refused(half, overrides):
    with claimed(half), pytest.raises(UserError, match=r"another process is writing to .*run"):
        resume(overrides, half)


def test_other_classes_are_refused(half, overrides):
    checkpoint = load_checkpoint(half / "last.pth")
    checkpoint.split["train"].pop()
    save_checkpoint(checkpoint, half / "last.pth")
    with pytest.raises(UserError, match=r"the classes of .* are not those that the run was started with"):
        resume(overrides, half)


@contextmanager
def mounted(folder, options):
    """A small file system of its own in `folder`; skips the test where this user may not mount one."""
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], capture_output=True, check=False)
    if done.returncode:
        pytest.skip("mounting a file system needs root on Linux")
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


linux = pytest.mark.skipif(sys.platform != "linux", reason="mounts a file system")


@linux
@pytest.mark.parametrize("free", [0, 30_000])
def test_a_full_disk_ends_the_run_and_costs_nothing(overrides, uninterrupted, tmp_path, free):
    """The disk fills up after some meta-iterations, to where nothing or a part of a checkpoint fits."""
    with mounted(tmp_path / "disk", "size=2m") as disk:
        filler = disk / "filler"
        log = run_folder.RunFolder.log

        def filling_log(self, iteration, **values):
            if iteration == 13:
                usage = os.statvfs(disk)
                filler.write_bytes(bytes(max(0, usage.f_bavail * usage.f_frsize - free)))
            log(self, iteration, **values)

        with pytest.MonkeyPatch.context() as patch, pytest.raises(UserError, match=r"cannot write .*No space left"):
            patch.setattr(run_folder.RunFolder, "log", filling_log)
            train(load_experiment(None, overrides), disk / "run")
        assert load_checkpoint(disk / "run" / "last.pth").iteration >= 12
        filler.unlink()
        resume(overrides, disk / "run")
        assert_same_run(disk / "run", uninterrupted)


@linux
def test_a_disk_too_small_for_the_image_cache_costs_a_warning(glyphs_root, tmp_path):
    with mounted(tmp_path / "disk", "size=500k") as disk:
        with pytest.warns(UserWarning, match=r"could not be cached: cannot write .*No space left on device"):
            images = load_glyphs(disk, alphabets=3)
        assert torch.equal(images.pixels, load_glyphs(glyphs_root, alphabets=3).pixels)
        assert not list(disk.rglob("*.tmp"))


@linux
def test_a_folder_that_becomes_unwritable_ends_the_run_and_costs_nothing(
    overrides, uninterrupted, tmp_path, monkeypatch
):
    with mounted(tmp_path / "disk", "size=4m") as disk:
        name = files._temporary_name

        def failing(path):
            metrics = disk / "run" / "metrics.jsonl"
            if metrics.exists() and metrics.read_bytes().count(b"\n") > 12:
                raise OSError(30, "Read-only file system")
            return name(path)

        with monkeypatch.context() as patch, pytest.raises(UserError, match=r"cannot write .*Read-only file system"):
            patch.setattr(files, "_temporary_name", failing)
            train(load_experiment(None, overrides), disk / "run")
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        with pytest.raises(UserError, match=r"cannot write to .*run: Read-only file system"):
            resume(overrides, disk / "run")
        subprocess.run(["mount", "-o", "remount,rw", disk], check=True)
        resume(overrides, disk / "run")
        assert_same_run(disk / "run", uninterrupted)


def test_clipping_bounds_the_meta_gradient(overrides, tmp_path, monkeypatch):
    norms = []
    step = torch.optim.Adam.step

    def recording_step(self, *arguments):
        gradients = [parameter.grad.flatten() for group in self.param_groups for parameter in group["params"]]
        norms.append(torch.cat(gradients).norm().item())
        return step(self, *arguments)

    monkeypatch.setattr(torch.optim.Adam, "step", recording_step)
    train(load_experiment(None, overrides), tmp_path / "free")
    free = list(norms)
    limit = sorted(free)[len(free) // 2]
    norms.clear()
    train(load_experiment(None, [*overrides, f"train.max_grad_norm={limit}"]), tmp_path / "clipped")
    assert max(norms) <= limit * 1.001 < max(free)
    assert norms[0] == pytest.approx(min(free[0], limit), rel=1e-4)


def test_the_second_path_is_written_though_the_last_checkpoint_is_from_before_the_best(overrides, tmp_path):
    """As after a kill between a validation and the next checkpoint."""
    folder, experiment = tmp_path / "run", load_experiment(None, overrides)
    train(experiment, folder)
    save_checkpoint(dataclasses.replace(load_checkpoint(folder / "last.pth"), best_accuracy=None), folder / "last.pth")
    train(experiment, folder, save_to=tmp_path / "second.pth", resume=True)
    assert (tmp_path / "second.pth").read_bytes() == (folder / "best.pth").read_bytes()
