"""Several processes: the same meta-gradient, the same figures, one writer, and a job that survives a worker."""

import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path

import pytest
import torch

from maml_l2l.checkpoints.checkpoint import load_checkpoint
from maml_l2l.config import load_experiment, with_overrides
from maml_l2l.data.sources import class_split, load_data
from maml_l2l.experiments import training
from maml_l2l.experiments.evaluation import evaluate
from maml_l2l.experiments.trainer import MetaTrainer
from maml_l2l.experiments.training import train
from maml_l2l.system import distributed
from maml_l2l.system.errors import UserError
from maml_l2l.system.machine import describe
from tests.commands import wait_for_metrics
from tests.test_resume import same_state
from tests.test_training import TINY, metrics

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="starts processes that talk over gloo")


@pytest.fixture(scope="module")
def overrides(glyphs_root):
    return [*TINY, f"data.root={glyphs_root}", "run.threads=1", "run.compile=false", "train.meta_batch=7"]


def joined(rank, world, meeting_point, function, arguments, results):
    """What a child runs: join the others, then put what `function` returns into `results`."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{meeting_point}", rank=rank, world_size=world)
    results.put((rank, function(*arguments)))
    torch.distributed.destroy_process_group()


def in_processes(world, meeting_point, function, *arguments):
    """`function(*arguments)` in `world` processes that know one another; their answers in order."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["maml_l2l.experiments.training"])
    results = context.Queue()
    ranks = range(world)
    children = [
        context.Process(target=joined, args=(rank, world, meeting_point, function, arguments, results))
        for rank in ranks
    ]
    for child in children:
        child.start()
    found = dict(results.get(timeout=120) for _ in ranks)
    for child in children:
        child.join()
    return [found[rank] for rank in ranks]


def make_trainer(overrides):
    experiment = load_experiment(None, overrides)
    images = load_data(experiment.data)
    trainer = MetaTrainer(experiment, images, class_split(experiment.data, images), torch.device("cpu"))
    trainer.learner.double()
    return trainer


def meta_gradient(overrides):
    """(loss, accuracy, gradient) in float64; as plain numbers, which processes pass on by value."""
    trainer = make_trainer(overrides)
    meta_batch = trainer.experiment.train.meta_batch
    first, count = distributed.share(meta_batch)
    tasks = trainer.training_tasks.batch(3 * meta_batch + first, count).to(dtype=torch.float64)
    loss, accuracy = trainer._meta_gradient(tasks)
    gradient = torch.cat([parameter.grad.flatten() for parameter in trainer.learner.parameters()])
    return loss, accuracy, gradient.tolist()


@pytest.mark.parametrize("order", ["second", "first"])
@pytest.mark.parametrize("meta_batch", [6, 7])
def test_any_number_of_processes_takes_the_same_meta_gradient(overrides, tmp_path, order, meta_batch):
    settings = [*overrides, f"algorithm.order={order}", f"train.meta_batch={meta_batch}"]
    loss, accuracy, gradient = meta_gradient(settings)
    gradient = torch.tensor(gradient, dtype=torch.float64)
    for world in (2, 3):
        answers = in_processes(world, tmp_path / f"meeting-{world}", meta_gradient, settings)
        for found_loss, found_accuracy, found in answers:
            assert found == answers[0][2], "the processes would drift apart"
            error = (torch.tensor(found, dtype=torch.float64) - gradient).norm() / gradient.norm()
            assert error < 1e-10
            assert (found_loss, found_accuracy) == pytest.approx((loss, accuracy), rel=1e-10)


def train_and_list(overrides, folder):
    train(load_experiment(None, overrides), folder)
    return distributed.rank()


def test_two_processes_train_as_one_does_and_only_the_first_writes(overrides, tmp_path):
    settings = [*overrides, "train.validate_tasks=120", "train.ema=0.5"]  # three batches for two processes
    # In the loop rounding is all there is of the gradients of biases before a norm, and Adam makes whole steps of it.
    settings += ["algorithm.engine=vectorized"]
    train(load_experiment(None, settings), tmp_path / "one")
    assert in_processes(2, tmp_path / "meeting", train_and_list, settings, tmp_path / "two") == [0, 1]
    assert {path.name for path in (tmp_path / "two").iterdir()} == {path.name for path in (tmp_path / "one").iterdir()}
    (session,) = json.loads((tmp_path / "two" / "sessions.json").read_text())
    assert session["processes"] == 2
    assert ", 2 processes of 1 thread; " in describe(session)
    for found, expected in zip(metrics(tmp_path / "two"), metrics(tmp_path / "one"), strict=True):
        assert found == pytest.approx(expected, rel=1e-3)
    one, two = (load_checkpoint(tmp_path / name / "last.pth").weights for name in ("one", "two"))
    for name, weight in one.items():
        torch.testing.assert_close(two[name], weight, rtol=1e-2, atol=1e-3)


def refusal(overrides):
    try:
        make_trainer(overrides)
    except UserError as error:
        return str(error)


def test_more_processes_than_tasks_are_refused(overrides, tmp_path):
    message = "train.meta_batch is 1, which 2 processes cannot share. Start 1 at most, or raise train.meta_batch."
    settings = [*overrides, "train.meta_batch=1"]
    assert in_processes(2, tmp_path / "meeting", refusal, settings) == [message, message]


@pytest.mark.parametrize(("count", "world"), [(32, 3), (7, 2), (2, 2), (1, 1)])
def test_shares_cover_everything_once(monkeypatch, count, world):
    monkeypatch.setattr(distributed, "processes", lambda: world)
    covered = []
    for rank in range(world):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        first, number = distributed.share(count)
        covered += range(first, first + number)
    assert covered == list(range(count))


def torchrun(*arguments, processes=2, restarts=0):
    """A job of so many processes on this machine."""
    options = ["--standalone", f"--nproc_per_node={processes}", f"--max-restarts={restarts}", "-m", "maml_l2l.train"]
    command = [sys.executable, "-m", "torch.distributed.run", *options, *map(str, arguments)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def workers(job):
    """The process ids of a job's training processes."""
    return [int(pid) for pid in Path(f"/proc/{job.pid}/task/{job.pid}/children").read_text().split()]


def test_a_killed_worker_is_replaced_and_the_run_ends_as_one_never_stopped(overrides, tmp_path):
    settings = [*overrides, "train.iterations=80", "train.checkpoint_every=10", "train.validate_every=40"]
    in_processes(2, tmp_path / "meeting", train_and_list, settings, tmp_path / "straight")
    job = torchrun("--set", *settings, "--run_dir", tmp_path / "run", restarts=1)
    try:
        wait_for_metrics(tmp_path / "run", 20)
        victim = workers(job)[1]
        os.kill(victim, signal.SIGKILL)
        output, _ = job.communicate(timeout=200)
    finally:
        job.kill()
    assert job.returncode == 0, output
    assert f"resuming {tmp_path / 'run'} after" in output
    last, expected = (load_checkpoint(tmp_path / name / "last.pth") for name in ("run", "straight"))
    assert same_state(last, expected)
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == (tmp_path / "straight" / "metrics.jsonl").read_bytes()


@pytest.mark.slow
def test_a_restart_does_not_go_on_with_a_run_that_another_job_has_left(overrides, tmp_path):
    longer = [*overrides, "train.iterations=9"]
    train(load_experiment(None, [*overrides, "train.iterations=3"]), tmp_path / "run")
    before = {path: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    job = torchrun("--set", *longer, "--run_dir", tmp_path / "run", processes=1, restarts=1)
    output, _ = job.communicate(timeout=200)
    assert job.returncode != 0
    assert output.count("already holds a run, which is never overwritten") == 2, output
    assert {path: path.read_bytes() for path in (tmp_path / "run").iterdir()} == before


def test_a_mistake_is_told_once_by_the_first_process(overrides, tmp_path):
    train(load_experiment(None, [*overrides, "train.iterations=3"]), tmp_path / "run")
    job = torchrun("--set", *overrides, "train.iterations=2", "--resume", tmp_path / "run")
    output, _ = job.communicate(timeout=200)
    assert job.returncode != 0
    assert output.count("error: the run cannot be resumed with another config: `train.iterations` was 3") == 1, output
    assert "RuntimeError" not in output and "(exitcode: 2)" in output, output


def test_without_restarts_a_killed_worker_takes_the_job_down_and_the_checkpoint_stays(overrides, tmp_path):
    endless = ["train.iterations=100000", "train.checkpoint_every=20", "train.validate_every=100000"]
    job = torchrun("--set", *overrides, *endless, "--run_dir", tmp_path / "run")
    try:
        wait_for_metrics(tmp_path / "run", 20)
        first, victim = workers(job)
        os.kill(victim, signal.SIGKILL)
        job.communicate(timeout=100)
    finally:
        job.kill()
    assert job.returncode != 0
    deadline = time.monotonic() + 20
    while Path(f"/proc/{first}").exists():
        assert time.monotonic() < deadline, "a worker was left behind"
        time.sleep(0.1)
    assert load_checkpoint(tmp_path / "run" / "last.pth").iteration >= 20


def outcome(function, *arguments):
    try:
        return function(*arguments)
    except UserError as error:
        return str(error)
    except SystemExit as left:
        return left.code


def train_with_others(overrides, other, folder):
    """Train with the settings `other` in process 1, or with other data there."""
    is_other = distributed.rank() == 1
    with pytest.MonkeyPatch.context() as patch:
        if is_other and other == "pixels":
            patch.setattr(training, "load_data", changed_data)
        if is_other and other == "no data":
            patch.setattr(training, "load_data", missing_data)
        settings = other if is_other and isinstance(other, list) else []
        return outcome(train, load_experiment(None, [*overrides, *settings]), folder)


def changed_data(data):
    images = load_data(data)
    images.pixels[7, 0, 3, 3] ^= 1
    return images


def missing_data(_):
    raise UserError("there are no pictures here.")


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (
            ["train.meta_lr=0.002"],
            "process 1 of torchrun works with another `train.meta_lr` than process 0, 0.002 and 0.001",
        ),
        (
            ["train.validate_every=1"],
            "process 1 of torchrun works with another `train.validate_every` than process 0, 1",
        ),
        (["model.filters=9"], "process 1 of torchrun works with another `model.filters` than process 0, 9 and 8"),
        ("pixels", "process 1 of torchrun works with another data set (a digest) than process 0"),
    ],
)
def test_processes_that_work_on_different_things_are_refused_before_training(overrides, tmp_path, other, message):
    first, second = in_processes(2, tmp_path / "meeting", train_with_others, overrides, other, tmp_path / "run")
    assert first.startswith(message)
    assert second == 2
    assert not (tmp_path / "run").exists()


def test_what_one_process_lacks_ends_all_and_is_told_once(overrides, tmp_path):
    found = in_processes(2, tmp_path / "meeting", train_with_others, overrides, "no data", tmp_path / "run")
    assert found == [2, "there are no pictures here."]


def evaluate_with_others(path, other):
    checkpoint = load_checkpoint(path)
    experiment = with_overrides(checkpoint.experiment, {"eval.tasks": 4, "eval.steps": 1}, "test")
    if distributed.rank() == 1 and other == "weights":
        checkpoint.weights["head.bias"][0] += 1
    if distributed.rank() == 1 and other == "tasks":
        experiment = with_overrides(experiment, {"eval.tasks": 5}, "test")
    return outcome(lambda: evaluate(checkpoint, experiment, "test").accuracies.shape)


def test_processes_that_evaluate_different_things_are_refused(overrides, tmp_path):
    train(load_experiment(None, [*overrides, "train.iterations=3"]), tmp_path / "run")
    for other, message in (
        ("tasks", "process 1 of torchrun works with another `eval.tasks` than process 0, 5 and 4"),
        ("weights", "process 1 of torchrun works with another checkpoint (a digest) than process 0"),
    ):
        arguments = evaluate_with_others, tmp_path / "run/best.pth", other
        first, second = in_processes(2, tmp_path / f"meeting-{other}", *arguments)
        assert first.startswith(message) and second == 2


def joined_by_torchrun(rank, port, behaviour, results):
    """What a child runs, as if torchrun had started it: patience of 6 s, and then the `behaviour` of process 1."""
    os.environ |= {"TORCHELASTIC_RUN_ID": "same name", "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GROUP_WORLD_SIZE": "1"}
    distributed._PATIENCE = timedelta(seconds=6)

    def load():
        time.sleep(10 if behaviour == "stopped" and rank == 0 else 0)  # longer than the patience of training
        return "loaded"

    with distributed.process_group(torch.device("cpu")):
        found = [distributed.job(), distributed.one_a_machine_first(load)]
        if rank == 1 and behaviour == "gone":
            os._exit(1)
        if rank == 1 and behaviour == "stopped":
            os.kill(os.getpid(), signal.SIGSTOP)
        found.append(outcome(distributed.sum_in_place, [torch.ones(1)]))
        results.put((rank, found))


def first_of_a_job(behaviour):
    """(job, what was loaded, the problem) of process 0."""
    context = multiprocessing.get_context("forkserver")
    results = context.Queue()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = [context.Process(target=joined_by_torchrun, args=(rank, port, behaviour, results)) for rank in range(2)]
    for child in children:
        child.start()
    found = {}
    while 0 not in found:
        rank, answer = results.get(timeout=120)
        found[rank] = answer
    for child in children:
        child.kill()
        child.join()
    return found[0]


def test_jobs_are_told_apart_whatever_they_are_called():
    first, second = first_of_a_job("fine"), first_of_a_job("fine")
    assert first[0] != second[0]
    assert first[1:] == second[1:] == ["loaded", None]


@pytest.mark.parametrize(
    ("behaviour", "message"),
    [
        pytest.param("stopped", "has not answered for 0.1 minutes", marks=pytest.mark.slow),
        ("gone", "is gone, and its own message says why"),
    ],
)
def test_data_are_waited_for_and_a_process_that_stands_still_or_is_gone_is_not(behaviour, message):
    _, loaded, problem = first_of_a_job(behaviour)
    assert loaded == "loaded"
    assert problem == f"another process {message}. See to it, and start again, a training with --resume."
