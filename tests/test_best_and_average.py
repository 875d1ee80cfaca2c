"""`train.keep_best` and `train.ema`: against sorting and the recursion by hand, and whatever interrupts a run."""

import dataclasses
import itertools
import random
import warnings

import pytest
import torch

from maml_l2l.checkpoints.checkpoint import load_checkpoint, save_checkpoint
from maml_l2l.config import load_experiment
from maml_l2l.data.sources import class_split, load_data
from maml_l2l.experiments import best_checkpoints, run_folder
from maml_l2l.experiments.best_checkpoints import BestCheckpoints
from maml_l2l.experiments.evaluation import evaluate_learner
from maml_l2l.experiments.trainer import MetaTrainer
from maml_l2l.experiments.training import train
from maml_l2l.system.errors import UserError
from maml_l2l.system.files import write_atomically
from tests.test_training import TINY, metrics

RUN = [*TINY, "train.iterations=8", "train.validate_every=1", "train.checkpoint_every=3", "run.threads=1"]


@pytest.fixture(autouse=True)
def no_curves(monkeypatch):
    """They take most of the time of a tiny run."""
    monkeypatch.setattr(run_folder, "plot_curves", lambda *_, **__: None)


class KilledError(Exception):
    """Ends what a kill would end."""


@dataclasses.dataclass(frozen=True)
class Light:
    """What `BestCheckpoints` asks of a checkpoint."""

    iteration: int
    best_accuracy: float | None = None


def load_light(path):
    if not path.exists():
        raise UserError(f"there is no checkpoint {path}.")
    return Light(*map(float, path.read_text().split()))


@pytest.fixture
def light(monkeypatch):
    """Checkpoints of two numbers; `light(n)` has the n-th write from now on fail as a kill would."""
    left = [None]

    def write(path, content):
        if left[0] is not None:
            left[0] -= 1
            if left[0] < 0:
                raise KilledError
        write_atomically(path, content)

    def save(checkpoint, path):
        text = f"{checkpoint.iteration} {checkpoint.best_accuracy}".encode()
        write(path, lambda file: file.write(text))

    monkeypatch.setattr(best_checkpoints, "write_atomically", write)
    monkeypatch.setattr(best_checkpoints, "save_checkpoint", save)
    monkeypatch.setattr(best_checkpoints, "load_checkpoint", load_light)
    return lambda n: left.__setitem__(0, n)


def best_by_hand(accuracies, count):
    """(meta-iteration, accuracy) of the best of the validations after meta-iteration 1, 2, ..."""
    return sorted(enumerate(accuracies, start=1), key=lambda one: (-one[1], one[0]))[:count]


def standing(folder):
    """What the files hold, in the order of their ranks; none may be left over."""
    names = ["best.pth", *(f"best_{rank}.pth" for rank in range(2, 9))]
    found = [load_light(folder / name) for name in names if (folder / name).exists()]
    assert {path.name for path in folder.iterdir()} == set(names[: len(found)])
    return [(one.iteration, one.best_accuracy) for one in found]


def test_the_best_validations_are_kept_in_order_whenever_a_run_is_killed_and_wherever_it_goes_on(light, tmp_path):
    generator = random.Random(3)
    killed_in_all = 0
    for case in range(60):
        folder, count = tmp_path / str(case), generator.randint(1, 4)
        folder.mkdir()
        accuracies = [float(generator.randint(1, 6)) for _ in range(10)]
        done, kills = 0, generator.randint(0, 4)
        while done < 10:
            light(generator.randint(0, 6) if kills else None)
            kills -= kills > 0
            best = BestCheckpoints(folder, count)
            try:
                with warnings.catch_warnings(action="error"):  # nothing is missed: `best.pth` is always there
                    best.find(Light(done, max(accuracies[:done], default=None)))
                for iteration in range(done + 1, 11):
                    best.add(Light(iteration), accuracies[iteration - 1])
                    assert best.accuracy == load_light(folder / "best.pth").best_accuracy
                done = 10
            except KilledError:
                killed_in_all += 1
                done = generator.randint(0, iteration - 1) if "iteration" in locals() else done
        assert standing(folder) == best_by_hand(accuracies, count), (case, accuracies)
    assert killed_in_all > 40


def test_a_run_keeps_its_best_validations(glyphs_root, tmp_path):
    train(load_experiment(None, [*RUN, f"data.root={glyphs_root}", "train.keep_best=3"]), tmp_path / "run")
    accuracies = [line["val_accuracy"] for line in metrics(tmp_path / "run") if "val_accuracy" in line]
    names = ("best.pth", "best_2.pth", "best_3.pth")
    found = [load_checkpoint(tmp_path / "run" / name) for name in names]
    assert [(one.iteration, one.validation_accuracy) for one in found] == best_by_hand(accuracies, 3)
    assert sorted(path.name for path in (tmp_path / "run").glob("best*")) == sorted(names)


@pytest.fixture
def trainer(glyphs_root):
    overrides = [*RUN, "train.ema=0.6", "algorithm.learn_inner_lr=true", "train.meta_lr=0.05"]
    experiment = load_experiment(None, [*overrides, f"data.root={glyphs_root}"])
    images = load_data(experiment.data)
    return MetaTrainer(experiment, images, class_split(experiment.data, images), torch.device("cpu"))


def learned(trainer):
    return {name: parameter.detach().double() for name, parameter in trainer.learner.named_parameters()}


def test_the_average_follows_its_recursion_and_is_what_validates(trainer):
    expected = {}
    for step in itertools.islice(trainer.iterations(), 7):
        n = step.number - 1
        decay = min(0.6, (1 + n) / (10 + n)) if n else 0
        expected = {
            name: decay * expected.get(name, weights) + (1 - decay) * weights
            for name, weights in learned(trainer).items()
        }
    raw = learned(trainer)
    for name, average in trainer.average.tensors().items():
        torch.testing.assert_close(average.double(), expected[name], rtol=1e-4, atol=1e-6)
    assert "inner_lrs" in expected
    best, last = trainer.validated(), trainer.checkpoint()
    for name, weight in best.weights.items():
        torch.testing.assert_close(weight.double(), expected[f"module.{name}"], rtol=1e-4, atol=1e-6)
        assert torch.equal(last.weights[name].double(), raw[f"module.{name}"])
    assert not torch.equal(last.weights["head.weight"], best.weights["head.weight"])
    torch.testing.assert_close(best.inner_lrs.double(), expected["inner_lrs"], rtol=1e-4, atol=1e-6)
    assert best.averaged is None and best.optimizer is None

    found = trainer.validate()
    assert {name: weights.tolist() for name, weights in learned(trainer).items()} == {
        name: weights.tolist() for name, weights in raw.items()
    }
    options = {"tasks": 4, "steps": [1], "device": torch.device("cpu")}
    losses = evaluate_learner(best.learner(), trainer.validation_tasks, **options).losses
    torch.testing.assert_close(found.losses, losses)
    assert not torch.allclose(losses, evaluate_learner(last.learner(), trainer.validation_tasks, **options).losses)


def test_before_any_meta_iteration_the_weights_are_their_average(trainer):
    pretrained = dataclasses.replace(
        trainer.validated(), weights={n: w + 1 for n, w in trainer.validated().weights.items()}
    )
    trainer.start_from(pretrained)
    assert all(torch.equal(weight, pretrained.weights[name]) for name, weight in trainer.validated().weights.items())


@pytest.mark.parametrize("crash", [5, 7])
def test_a_run_with_both_that_breaks_off_ends_as_one_never_stopped(glyphs_root, tmp_path, monkeypatch, crash):
    """As a kill does it: `last.pth` is of meta-iteration 3 or 6, and of the best ones some are later."""
    settings = [*RUN, f"data.root={glyphs_root}", "train.keep_best=3", "train.ema=0.7"]
    experiment = load_experiment(None, settings)
    train(experiment, tmp_path / "straight")
    log = run_folder.RunFolder.log

    def breaking_log(self, iteration, **values):
        if iteration == crash + 1:
            raise KilledError
        log(self, iteration, **values)

    with monkeypatch.context() as patch, pytest.raises(KilledError):
        patch.setattr(run_folder.RunFolder, "log", breaking_log)
        train(experiment, tmp_path / "run")
    assert load_checkpoint(tmp_path / "run" / "last.pth").iteration == 3 * (crash // 3)
    train(experiment, tmp_path / "run", resume=True)
    names = [path.name for path in (tmp_path / "straight").iterdir() if path.suffix in (".pth", ".jsonl")]
    assert len(names) == 6
    for name in names:
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "straight" / name).read_bytes(), name
    averaged = load_checkpoint(tmp_path / "run" / "last.pth").averaged
    assert averaged.keys() == {f"module.{name}" for name in load_checkpoint(tmp_path / "run" / "last.pth").weights}


def test_what_is_lost_of_the_best_is_replaced_by_the_next_and_said(glyphs_root, tmp_path):
    experiment = load_experiment(None, [*RUN, f"data.root={glyphs_root}", "train.keep_best=3"])
    train(experiment, tmp_path / "run")
    second, third = ((tmp_path / "run" / f"best_{rank}.pth").read_bytes() for rank in (2, 3))
    (tmp_path / "run" / "best.pth").write_bytes(b"damaged")
    with pytest.warns(
        UserWarning, match=r"best.pth is not a checkpoint, or is damaged.*, the next best, take its place"
    ):
        train(experiment, tmp_path / "run", tmp_path / "copy.pth", resume=True)
    assert (tmp_path / "run" / "best.pth").read_bytes() == (tmp_path / "copy.pth").read_bytes() == second
    assert (tmp_path / "run" / "best_2.pth").read_bytes() == third
    assert not (tmp_path / "run" / "best_3.pth").exists()
    (tmp_path / "run" / "best_2.pth").write_bytes(b"damaged")
    with pytest.warns(UserWarning, match=r"best_2.pth is not a checkpoint, or is damaged.*left out of the best ones"):
        train(experiment, tmp_path / "run", resume=True)
    assert (tmp_path / "run" / "best_2.pth.damaged").exists()


def test_files_that_the_best_would_overwrite_are_refused(glyphs_root, tmp_path):
    (tmp_path / "best_2.pth").write_text("mine")
    with pytest.raises(UserError, match=r"already holds best_2.pth, which a run would overwrite"):
        train(load_experiment(None, [*RUN, f"data.root={glyphs_root}", "train.keep_best=3"]), tmp_path)
    assert (tmp_path / "best_2.pth").read_text() == "mine"


def test_a_last_checkpoint_without_its_averages_is_refused(trainer, tmp_path):
    with pytest.raises(UserError, match=r"`averaged` is missing, which a run with `train.ema` goes on from"):
        save_checkpoint(dataclasses.replace(trainer.checkpoint(), averaged=None), tmp_path / "x.pth")
    wrong = {name: weights[..., :1] for name, weights in trainer.checkpoint().averaged.items()}
    with pytest.raises(UserError, match=r"`averaged.inner_lrs` should have the shape"):
        save_checkpoint(dataclasses.replace(trainer.checkpoint(), averaged=wrong), tmp_path / "x.pth")
