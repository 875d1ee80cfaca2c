"""Training and evaluating on folders of pictures, as a user does, up to the accuracy on classes that were not seen."""

import dataclasses
import shutil
import sys

import pytest
import torch

from maml_l2l.checkpoints.checkpoint import load_checkpoint
from maml_l2l.config import load_experiment, with_overrides
from maml_l2l.experiments import training
from maml_l2l.experiments.evaluation import evaluate
from maml_l2l.experiments.training import train
from maml_l2l.system.errors import UserError
from maml_l2l.train import main
from tests.commands import assert_user_error, run
from tests.test_training import TINY

SMALL = [
    "data.name=folder",
    "data.image_size=20",
    "model.filters=8",
    "train.meta_batch=2",
    "train.validate_tasks=4",
    "eval.tasks=4",
]


def experiment(root, *overrides):
    return load_experiment(None, [*SMALL, "train.iterations=1", f"data.root={root}", *overrides])


def accuracies(checkpoint, **overrides):
    return evaluate(checkpoint, with_overrides(checkpoint.experiment, overrides, "the test"), "test").accuracies


@pytest.fixture(scope="module")
def checkpoint(shapes_root, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "run"
    train(experiment(shapes_root), folder)
    return load_checkpoint(folder / "best.pth")


def test_a_colour_set_of_textured_shapes_trains_and_serves_unseen_classes(shapes_root, tmp_path):
    settings = ["data.image_size=32", "model.filters=16", "train.meta_batch=8", "train.iterations=60", "eval.tasks=100"]
    train(experiment(shapes_root, *settings, "train.meta_lr=3e-3", "train.validate_tasks=20"), tmp_path / "run")
    trained = load_checkpoint(tmp_path / "run" / "best.pth")
    assert len(trained.split["test"]) == 6
    assert not {*trained.split["train"], *trained.split["val"]} & {*trained.split["test"]}
    assert accuracies(trained)[1].mean() > 60, "chance is 20"


def test_the_checkpoint_holds_the_split_that_is_evaluated(checkpoint, monkeypatch):
    drawn = []
    from maml_l2l.experiments import evaluation

    def spy(experiment, images, split, name, make=evaluation.task_stream, **options):
        drawn.append(split[name])
        return make(experiment, images, split, name, **options)

    monkeypatch.setattr(evaluation, "task_stream", spy)
    accuracies(checkpoint)
    assert drawn == [checkpoint.split["test"]]
    with pytest.raises(UserError, match=r"was trained with `data.split_seed` 0, which an evaluation cannot change, fo"):
        accuracies(checkpoint, **{"data.split_seed": 9})


def test_a_folder_that_the_checkpoint_does_not_know_is_evaluated_whole(checkpoint, shapes_root, tmp_path, caplog):
    for number in range(5):
        shutil.copytree(shapes_root / f"class{number:02d}", tmp_path / f"unknown{number}")
    assert accuracies(checkpoint, **{"data.root": str(tmp_path)}).shape == (11, 4)
    assert f"{tmp_path} holds no class of the checkpoint's split: all 5 are evaluated" in caplog.text


def test_classes_that_trained_an_earlier_network_are_not_evaluated(checkpoint, shapes_root, tmp_path, caplog):
    for number in range(7):
        shutil.copytree(shapes_root / f"class{number:02d}", tmp_path / f"unknown{number}")
    tuned = dataclasses.replace(checkpoint, earlier_classes=("elsewhere", "unknown0", "unknown3"))
    found = accuracies(tuned, **{"data.root": str(tmp_path)})
    assert "split: the 5 of 7 that never trained it are evaluated" in caplog.text
    for number in (0, 3):
        shutil.rmtree(tmp_path / f"unknown{number}")
    assert torch.equal(accuracies(checkpoint, **{"data.root": str(tmp_path)}), found)


def test_the_test_classes_alone_can_be_evaluated(checkpoint, shapes_root, tmp_path, caplog):
    for name in checkpoint.split["test"]:
        shutil.copytree(shapes_root / name, tmp_path / name)
    assert torch.equal(accuracies(checkpoint, **{"data.root": str(tmp_path)}), accuracies(checkpoint))
    assert "no class" not in caplog.text


def test_a_folder_of_training_classes_is_refused(checkpoint, shapes_root, tmp_path):
    for name in checkpoint.split["train"][:5]:
        shutil.copytree(shapes_root / name, tmp_path / name)
    with pytest.raises(UserError, match=r"6 of the 6 test classes of the checkpoint are not in the data set"):
        accuracies(checkpoint, **{"data.root": str(tmp_path)})


def test_grey_data_for_a_colour_network_are_refused(checkpoint):
    with pytest.raises(UserError, match=r"takes images of channels 3, the data have 1. Set data.channels=3"):
        accuracies(checkpoint, **{"data.channels": 1})


def test_omniglot_as_a_folder_gives_the_accuracy_of_omniglot(omniglot_root, omniglot_as_folder, tmp_path):
    tiny = [setting for setting in TINY if "glyphs" not in setting and "alphabets" not in setting]
    train(load_experiment(None, [*tiny, f"data.root={omniglot_root}", "eval.tasks=20"]), tmp_path / "run")
    trained = load_checkpoint(tmp_path / "run" / "best.pth")
    folder = {"data.name": "folder", "data.root": str(omniglot_as_folder), "data.invert": True}
    assert torch.equal(accuracies(trained, **folder), accuracies(trained))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.test_fraction=0.1"], r"task.ways is 5, but the test split holds 3 of the 30 classes"),
        (["data.val_fraction=0.05"], r"task.ways is 5, but the val split holds 2 of the 30 classes"),
        (
            ["task.shots=8"],
            r"but 18 of the 18 classes of the train split hold fewer images: class\d\d \(8\), .* 8 more",
        ),
    ],
)
def test_classes_that_do_not_serve_are_refused_before_training(shapes_root, tmp_path, overrides, message):
    with pytest.raises(UserError, match=message):
        train(experiment(shapes_root, *overrides), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_without_test_classes_training_works_and_testing_says_so(shapes_root, tmp_path):
    train(experiment(shapes_root, "data.test_fraction=0"), tmp_path / "run")
    trained = load_checkpoint(tmp_path / "run" / "best.pth")
    with pytest.raises(UserError, match=r"task.ways is 5, but the test split holds 0 of the 30 classes"):
        accuracies(trained)


def test_the_commands_of_old_work_with_their_flags(shapes_root, tmp_path):
    """The whole line as users know it, and `--set` to keep it short."""
    sizes = ["--n_way", 5, "--k_shot", 2, "--n_query", 4]
    rounds = ["--epochs", 1, "--iters", 4, "--inner_iters", 1]
    command = ["maml_l2l.train", "--dataset_path", shapes_root, "--save_to", "model.pth", *sizes, *rounds]
    done = run(*command, "--set", *SMALL[1:], folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "Evaluate with: python -m maml_l2l.eval --model model.pth" in done.stdout
    best = (tmp_path / "runs" / "model" / "best.pth").read_bytes()
    assert (tmp_path / "model.pth").read_bytes() == best
    assert load_checkpoint(tmp_path / "model.pth").iteration == 4
    done = run("maml_l2l.eval", "--path", shapes_root, "--model", "model.pth", "--n_way", 5, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "5-way 2-shot, 4 queries a class, 4 tasks, test classes" in done.stdout
    done = run("maml_l2l.eval", "--model", "model.pth", "--k_shot", 6, "--set", "eval.steps=0", folder=tmp_path)
    assert_user_error(done, "task.shots + task.queries is 6 + 4 = 10, but 6 of the 6 classes of the test split")


def parsed(monkeypatch, *arguments):
    """What the command line hands to training: the experiment, the run folder, the second path of the checkpoint."""
    calls = []
    monkeypatch.setattr(training, "train", lambda *given, progress: calls.append(given[:3]))
    monkeypatch.setattr(sys, "argv", ["train", *map(str, arguments)])
    main()
    return calls[0]


def test_flags_override_the_config(monkeypatch, tmp_path):
    config = tmp_path / "mine.yaml"
    config.write_text("data:\n  name: glyphs\ntask:\n  ways: 7\n  shots: 3\ntrain:\n  iterations: 9\n")
    flags = ["--dataset_path", "elsewhere: #1", "--n_way", 4, "--n_query", 2, "--epochs", 3, "--iters", 5]
    made, run_dir, save_to = parsed(monkeypatch, "--config", config, *flags, "--inner_iters", 2)
    assert (made.data.name, made.data.root) == ("glyphs", "elsewhere: #1")
    assert made.task.model_dump() == {"ways": 4, "shots": 3, "queries": 2}
    assert (made.train.iterations, made.algorithm.inner_steps) == (15, 2)
    assert (str(run_dir), save_to) == ("runs/mine", None)


def test_without_a_config_a_folder_is_what_it_looks_like(monkeypatch, tmp_path):
    made, run_dir, save_to = parsed(monkeypatch, "--dataset_path", tmp_path, "--save_to", "out/model.pth")
    assert (made.data.name, made.data.image_size, made.train.iterations) == ("folder", 84, 60_000)
    assert (str(run_dir), str(save_to)) == ("runs/model", "out/model.pth")
    (tmp_path / "omniglot-py").mkdir()
    assert parsed(monkeypatch, "--dataset_path", tmp_path)[0].data.name == "omniglot"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--epochs", 2], "--epochs 2: an epoch is --iters meta-iterations, so give --iters too"),
        (["--iters", 0], "the command line: `train.iterations` should be greater than or equal to 1, found 0"),
        (
            ["--dataset_path", "nowhere"],
            "is no folder nowhere. Put pictures into a folder for each class, such as nowhere/",
        ),
    ],
)
def test_bad_flags_are_user_errors(arguments, message, tmp_path):
    assert_user_error(run("maml_l2l.train", *arguments, folder=tmp_path), message)


@pytest.mark.parametrize("name", ["folder", "file/model.pth"])
def test_a_checkpoint_that_could_not_be_saved_is_refused_before_training(shapes_root, tmp_path, name):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write .*folder: it is a folder|cannot create the folder .*file"):
        train(experiment(shapes_root), tmp_path / "run", tmp_path / name)
    assert not (tmp_path / "run" / "config.yaml").exists()


def test_the_second_path_follows_the_best_checkpoint_and_not_the_last(shapes_root, tmp_path, monkeypatch):
    scores = iter([50.0, 70.0, 60.0])
    validate = training.MetaTrainer.validate

    def scored(trainer):
        evaluation = validate(trainer)
        return type(evaluation)(evaluation.steps, evaluation.losses, evaluation.accuracies * 0 + next(scores))

    monkeypatch.setattr(training.MetaTrainer, "validate", scored)
    settings = ["train.iterations=3", "train.validate_every=1"]
    train(experiment(shapes_root, *settings), tmp_path / "run", tmp_path / "new" / "model.pth")
    assert load_checkpoint(tmp_path / "new" / "model.pth").iteration == 2
