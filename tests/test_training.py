"""The outer loop and its run folder, on a few glyphs."""

import dataclasses
import json
import math
import os
import subprocess

import pytest
import torch
import yaml
from torch.nn.functional import cross_entropy

from maml_l2l.checkpoints.checkpoint import load_checkpoint, save_checkpoint
from maml_l2l.config import load_experiment
from maml_l2l.data.sources import class_split, load_data
from maml_l2l.experiments import trainer
from maml_l2l.experiments.trainer import MetaTrainer
from maml_l2l.experiments.training import train
from maml_l2l.system import machine
from maml_l2l.system.errors import UserError

TINY = [
    "data.name=glyphs",
    "data.alphabets=3",
    "model.filters=8",
    "train.iterations=6",
    "train.meta_batch=3",
    "train.validate_every=3",
    "train.validate_tasks=4",
    "train.checkpoint_every=4",
    "task.ways=3",
    "run.device=cpu",
]


@pytest.fixture
def experiment(glyphs_root):
    def make(*overrides):
        return load_experiment(None, [*TINY, f"data.root={glyphs_root}", *overrides])

    return make


def metrics(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_the_run_folder_holds_everything(experiment, tmp_path):
    folder = tmp_path / "run"
    train(experiment(), folder)
    names = {"config.yaml", "sessions.json", "metrics.jsonl", "last.pth", "best.pth", "curves.png"}
    names |= {"previous.pth", ".lock"}
    assert {path.name for path in folder.iterdir()} == names
    assert yaml.safe_load((folder / "config.yaml").read_text()) == experiment().model_dump()
    (session,) = json.loads((folder / "sessions.json").read_text())
    assert (session["from"], session["to"]) == (0, 6)
    assert (session["processes"], session["threads"]) == (1, torch.get_num_threads())
    assert session["versions"]["torch"].startswith(torch.__version__.split("+")[0])
    lines = metrics(folder)
    assert [line["iteration"] for line in lines if "loss" in line] == [1, 2, 3, 4, 5, 6]
    validations = [line for line in lines if "val_accuracy" in line]
    assert [line["iteration"] for line in validations] == [3, 6]
    last, best = load_checkpoint(folder / "last.pth"), load_checkpoint(folder / "best.pth")
    assert last.iteration == 6
    assert last.optimizer is not None
    assert best.validation_accuracy == max(line["val_accuracy"] for line in validations)
    assert (folder / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_a_run_is_a_function_of_its_config(experiment, tmp_path):
    for name in "ab":
        train(experiment(), tmp_path / name)
    train(experiment("run.seed=1"), tmp_path / "c")
    a, b, c = ((tmp_path / name / "metrics.jsonl").read_text() for name in "abc")
    assert a == b != c
    first, second = (load_checkpoint(tmp_path / name / "last.pth").weights for name in "ab")
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("normalisation", ["batch", "support"])
def test_training_and_validation_score_queries_as_the_config_normalises_them(experiment, normalisation):
    settings = experiment(f"algorithm.normalisation={normalisation}", "task.queries=2")
    images = load_data(settings.data)
    trainer = MetaTrainer(settings, images, class_split(settings.data, images), torch.device("cpu"))

    def loss(stream, tasks):
        batch = stream.batch(0, tasks)
        logits = trainer.learner.adapt_and_score(batch, [1], normalisation)[0]
        return cross_entropy(logits.flatten(0, 1), batch.query_labels.flatten()).item()

    assert trainer.validate().losses.mean().item() == pytest.approx(loss(trainer.validation_tasks, 4))
    expected = loss(trainer.training_tasks, 3)
    assert next(trainer.iterations()).loss == pytest.approx(expected)


@pytest.mark.parametrize("order", ["first", "second"])
def test_training_learns(experiment, tmp_path, order):
    settings = ["train.iterations=100", "train.meta_batch=8", "train.meta_lr=1e-2", "train.validate_every=100"]
    train(experiment(*settings, f"algorithm.order={order}"), tmp_path / "run")
    losses = [line["loss"] for line in metrics(tmp_path / "run") if "loss" in line]
    assert sum(losses[-10:]) < 0.9 * sum(losses[:10])


def test_cosine_decay_runs_from_the_full_rate_to_nearly_zero(experiment, tmp_path):
    train(experiment("train.schedule=cosine", "train.meta_lr=0.5", "train.iterations=4"), tmp_path / "run")
    rates = [line["meta_lr"] for line in metrics(tmp_path / "run") if "loss" in line]
    assert rates == pytest.approx([0.25 * (1 + math.cos(math.pi * i / 4)) for i in range(4)])


def test_a_folder_that_holds_a_run_is_refused_and_left_alone(experiment, tmp_path):
    train(experiment("train.iterations=1"), tmp_path / "run")
    before = {path: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    with pytest.raises(UserError, match=r"run already holds a run, which is never overwritten"):
        train(experiment(), tmp_path / "run")
    assert {path: path.read_bytes() for path in (tmp_path / "run").iterdir()} == before


def test_a_folder_that_cannot_be_made_is_refused(experiment, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot create the folder .*run: Not a directory"):
        train(experiment(), tmp_path / "file" / "run")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder_is_refused(experiment, tmp_path):
    (tmp_path / "run").mkdir(mode=0o500)
    with pytest.raises(UserError, match=r"cannot write"):
        train(experiment(), tmp_path / "run")


def test_a_task_that_the_data_cannot_serve_leaves_no_folder(experiment, tmp_path):
    with pytest.raises(
        UserError,
        match=r"task.shots \+ task.queries is 15 \+ 6 = 21.*hold fewer images: Alphabet_\d+/\w+ \(20\)",
    ):
        train(experiment("task.shots=15", "task.queries=6"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_loss_that_is_not_finite_stops_the_run_and_leaves_the_last_good_checkpoint(experiment, tmp_path):
    message = (
        r"the loss of meta-iteration \d+ is not finite \(tasks \d+ to \d+ of seed 0, split train\). Its update was not"
    )
    with pytest.raises(UserError, match=message):
        train(experiment("algorithm.inner_lr=1e38", "train.checkpoint_every=1"), tmp_path / "run")
    weights = load_checkpoint(tmp_path / "run" / "last.pth").weights
    assert all(weight.isfinite().all() for weight in weights.values())


def test_tensorboard_events_hold_the_same_figures(experiment, tmp_path):
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    train(experiment("run.tensorboard=true"), tmp_path / "run")
    events = event_accumulator.EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    losses = [line["loss"] for line in metrics(tmp_path / "run") if "loss" in line]
    assert [event.value for event in events.Scalars("loss")] == pytest.approx(losses)
    assert [event.step for event in events.Scalars("val_accuracy")] == [3, 6]


def test_tensorboard_without_its_package_is_refused(experiment, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "torch.utils.tensorboard", None)
    with pytest.raises(UserError, match=r"run.tensorboard is true, but TensorBoard is not installed"):
        train(experiment("run.tensorboard=true"), tmp_path / "run")
    assert not (tmp_path / "run" / "config.yaml").exists(), "the folder would count as used"


def test_shift_moves_training_images_and_no_others(experiment):
    still, moved = (
        MetaTrainer(e, images := load_data(e.data), class_split(e.data, images), torch.device("cpu"))
        for e in (experiment(), experiment("train.shift=3"))
    )
    assert torch.equal(still.validation_tasks.batch(0, 4).query, moved.validation_tasks.batch(0, 4).query)
    assert not torch.equal(still.training_tasks.batch(0, 4).query, moved.training_tasks.batch(0, 4).query)


def test_validation_tasks_are_the_same_each_time(experiment, tmp_path, monkeypatch):
    seen = []
    stream = trainer.task_stream

    def spy(experiment, images, split, name, **options):
        tasks = stream(experiment, images, split, name, **options)
        batch = tasks.batch

        def recording_batch(start, count):
            found = batch(start, count)
            if name == "val":
                seen.append(found.query)
            return found

        tasks.batch = recording_batch
        return tasks

    monkeypatch.setattr(trainer, "task_stream", spy)
    train(experiment(), tmp_path / "run")
    assert len(seen) == 2
    assert torch.equal(*seen)


@pytest.mark.parametrize("ways", [2, 4])
def test_a_run_starts_from_a_pretrained_checkpoint_and_goes_on_without_it(experiment, tmp_path, ways):
    train(experiment("algorithm.learn_inner_lr=true"), tmp_path / "first")
    path = tmp_path / "first" / "last.pth"
    trained = load_checkpoint(path)
    options = ["algorithm.learn_inner_lr=true", "algorithm.inner_steps=2"]
    options += [f"task.ways={ways}", f"model.pretrained={path}"]
    images = load_data(experiment().data)
    trainer = MetaTrainer(experiment(*options), images, class_split(experiment().data, images), torch.device("cpu"))
    fresh = {name: weight.clone() for name, weight in trainer.learner.module.state_dict().items()}
    trained.start(trainer.learner, trainer.backbone, trainer.split, experiment().algorithm)
    for name, weight in trainer.learner.module.state_dict().items():
        new = ways > 3 and name.startswith("head.")
        assert torch.equal(weight, (fresh if new else trained.weights)[name][: len(weight)])
    assert torch.equal(trainer.learner.inner_lrs, trained.inner_lrs.expand(2, -1))
    start = trainer.validate().mean()[0]
    next(trainer.iterations())

    train(experiment(*options, "train.iterations=1"), tmp_path / "second")
    path.unlink()
    second = load_checkpoint(tmp_path / "second" / "last.pth")
    for name, weight in trainer.learner.module.state_dict().items():
        assert torch.equal(second.weights[name], weight)
    assert (metrics(tmp_path / "second")[0]["iteration"], metrics(tmp_path / "second")[0]["val_accuracy"]) == (0, start)
    train(experiment(*options), tmp_path / "second", resume=True)
    last = load_checkpoint(tmp_path / "second" / "last.pth")
    assert (last.iteration, list(last.earlier_classes)) == (6, sorted(trained.split["train"]))


def test_only_code_that_a_repository_tracks_has_a_commit(tmp_path, monkeypatch):
    git = ["git", "-c", "user.name=x", "-c", "user.email=x@x", "-C", str(tmp_path)]
    (tmp_path / "machine.py").touch()
    monkeypatch.setattr(machine, "__file__", str(tmp_path / "machine.py"))
    assert machine.commit() is None
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "x"], check=True)
    assert machine.commit() is None, "an installed copy in a stranger's repository"
    subprocess.run([*git, "add", "machine.py"], check=True)
    subprocess.run([*git, "commit", "-q", "-m", "x"], check=True)
    head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
    assert machine.commit() == head[:12]
    (tmp_path / "machine.py").write_text("changed")
    assert machine.commit() == f"{head[:12]}-dirty"


def test_a_network_that_is_best_at_the_start_stays_the_best(experiment, tmp_path):
    train(experiment("train.iterations=1"), tmp_path / "first")
    trained = load_checkpoint(tmp_path / "first" / "best.pth")
    ruinous = ["train.meta_lr=1000", f"model.pretrained={tmp_path / 'first' / 'best.pth'}", "train.validate_tasks=40"]
    train(experiment(*ruinous), tmp_path / "second")
    accuracies = [line["val_accuracy"] for line in metrics(tmp_path / "second") if "val_accuracy" in line]
    best = load_checkpoint(tmp_path / "second" / "best.pth")
    assert accuracies[0] == max(accuracies) == best.validation_accuracy
    assert all(torch.equal(weight, trained.weights[name]) for name, weight in best.weights.items())


def test_classes_that_trained_an_earlier_network_are_refused_for_validation(experiment, tmp_path):
    train(experiment(), tmp_path / "first")
    first = load_checkpoint(tmp_path / "first" / "last.pth")
    own = {"train": ["mine/1"], "val": ["mine/2"], "test": ["mine/3"]}
    tuned = dataclasses.replace(first, split=own, earlier_classes=first.training_classes)
    save_checkpoint(tuned, tmp_path / "tuned.pth")
    with pytest.raises(UserError, match=r"was trained on \d+ of the classes that validate or test this run"):
        train(experiment("data.split=alphabets", f"model.pretrained={tmp_path / 'tuned.pth'}"), tmp_path / "second")


@pytest.mark.parametrize(
    ("trained_with", "used_with", "message"),
    [
        ([], ["model.filters=4"], "is a network of filters 8, and this run's is of filters 4. Give both the same, or"),
        (["algorithm.learn_inner_lr=true"], [], "has learned step sizes, and this run learns none. Set algorithm.lea"),
        (["data.split=finn"], ["data.split=alphabets"], r"was trained on \d+ of the classes that validate or test thi"),
    ],
    ids=["network", "step sizes", "classes"],
)
def test_a_pretrained_checkpoint_that_does_not_fit_is_refused(experiment, tmp_path, trained_with, used_with, message):
    train(experiment(*trained_with), tmp_path / "first")
    pretrained = f"model.pretrained={tmp_path / 'first' / 'last.pth'}"
    with pytest.raises(UserError, match=f"^the checkpoint of model.pretrained {message}"):
        train(experiment(*used_with, pretrained), tmp_path / "second")
    assert not (tmp_path / "second").exists()


def test_a_run_without_inner_steps_leaves_behind_what_these_had_learned(experiment, tmp_path):
    train(experiment("algorithm.learn_inner_lr=true", "algorithm.update=meta_curvature"), tmp_path / "first")
    path = tmp_path / "first" / "last.pth"
    options = ["algorithm.inner_steps=0", "algorithm.head=prototype", f"model.pretrained={path}", "train.meta_lr=0.001"]
    train(experiment(*options, "train.iterations=1"), tmp_path / "second")
    first, second = load_checkpoint(path), load_checkpoint(tmp_path / "second" / "last.pth")
    assert second.inner_lrs is None and second.transform is None
    for name, weight in second.weights.items():
        if not name.startswith("head."):
            assert torch.allclose(weight, first.weights[name], atol=0.002)


@pytest.mark.parametrize("key", ["learn_inner_lr=true", "norm_per_step=true", "update=meta_sgd"])
def test_what_inner_steps_learn_is_refused_without_any(experiment, tmp_path, key):
    options = ["algorithm.inner_steps=0", "algorithm.head=prototype", f"algorithm.{key}"]
    with pytest.raises(UserError, match=rf"found 0: without a step `algorithm.{key.split('=')[0]}` learns nothing"):
        train(experiment(*options), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_pretrained_checkpoint_that_is_not_there_is_refused(experiment, tmp_path):
    with pytest.raises(UserError, match=r"there is no checkpoint nowhere\.pth"):
        train(experiment("model.pretrained=nowhere.pth"), tmp_path / "run")
    assert not (tmp_path / "run").exists()
