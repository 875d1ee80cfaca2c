"""The protocol: figures against their definitions, overrides, refusals, reports."""

import dataclasses
import json
import math
import statistics

import pytest
import torch

from maml_l2l.algorithms import MetaLearner
from maml_l2l.algorithms.loop import LoopMAML
from maml_l2l.algorithms.scores import Evaluation
from maml_l2l.checkpoints.checkpoint import load_checkpoint
from maml_l2l.config import load_experiment, with_overrides
from maml_l2l.experiments.evaluation import evaluate, evaluate_learner
from maml_l2l.experiments.training import train
from maml_l2l.reports import plots, tables
from maml_l2l.system.errors import UserError
from maml_l2l.system.files import write_json
from maml_l2l.tasks.stream import task_stream
from tests.test_training import TINY


@pytest.fixture(scope="module")
def checkpoint(glyphs_root, tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluation") / "run"
    train(load_experiment(None, [*TINY, f"data.root={glyphs_root}"]), folder)
    return load_checkpoint(folder / "last.pth")


def run(checkpoint, split="test", **overrides):
    overrides = {"eval.tasks": 20, "eval.steps": 3} | overrides
    return evaluate(checkpoint, with_overrides(checkpoint.experiment, overrides, "the test"), split)


def test_mean_and_interval_follow_their_definitions():
    accuracies = [20.0, 40.0, 40.0, 80.0, 100.0]
    evaluation = Evaluation((0,), torch.zeros(1, 5), torch.tensor([accuracies], dtype=torch.float64))
    assert evaluation.mean() == pytest.approx([statistics.mean(accuracies)])
    assert evaluation.ci95() == pytest.approx([1.96 * statistics.stdev(accuracies) / math.sqrt(5)])


def test_every_step_from_zero_is_scored_and_the_same_seed_gives_the_same_figures(checkpoint):
    first, second = run(checkpoint), run(checkpoint)
    assert first.steps == (0, 1, 2, 3)
    assert first.accuracies.shape == (4, 20)
    assert torch.equal(first.accuracies, second.accuracies)
    assert not torch.equal(first.accuracies, run(checkpoint, **{"run.seed": 5}).accuracies)
    assert not torch.equal(first.accuracies, run(checkpoint, split="train").accuracies)


def test_accuracy_is_counted_on_the_adapted_network(checkpoint):
    """One task after another with learn2learn's own calls."""
    experiment = with_overrides(checkpoint.experiment, {"eval.tasks": 6, "eval.steps": 2, "task.queries": 4}, "test")
    evaluation = evaluate(checkpoint, experiment, "test")
    from maml_l2l.data.sources import load_data

    tasks = task_stream(experiment, load_data(experiment.data), checkpoint.split, "test").batch(0, 6)
    for index in range(6):
        learner = checkpoint.learner().clone()
        for step in range(3):
            correct = learner(tasks.query[index]).argmax(1) == tasks.query_labels[index]
            assert evaluation.accuracies[step, index].item() == pytest.approx(100 * correct.double().mean().item())
            loss = torch.nn.functional.cross_entropy(learner(tasks.support[index]), tasks.support_labels[index])
            learner.adapt(loss)


def test_with_support_statistics_each_query_is_scored_as_if_it_were_alone(checkpoint):
    overrides = {"eval.tasks": 6, "eval.steps": 1, "task.queries": 4, "algorithm.normalisation": "support"}
    experiment = with_overrides(checkpoint.experiment, overrides, "test")
    evaluation = evaluate(checkpoint, experiment, "test")
    from maml_l2l.data.sources import load_data

    tasks = task_stream(experiment, load_data(experiment.data), checkpoint.split, "test").batch(0, 6)
    for index, support in enumerate(tasks.support):
        learner = checkpoint.learner().clone()
        learner.adapt(torch.nn.functional.cross_entropy(learner(support), tasks.support_labels[index]))
        losses = [
            torch.nn.functional.cross_entropy(learner(torch.cat([support, query[None]]), len(support))[-1], label)
            for query, label in zip(tasks.query[index], tasks.query_labels[index], strict=True)
        ]
        assert evaluation.losses[1, index].item() == pytest.approx(torch.stack(losses).mean().item(), rel=1e-4)


def test_an_untrained_network_without_adaptation_is_at_chance(checkpoint):
    fresh = checkpoint.learner()
    fresh.module.head.reset_parameters()
    from maml_l2l.data.sources import load_data

    experiment = checkpoint.experiment
    stream = task_stream(experiment, load_data(experiment.data), checkpoint.split, "test")
    evaluation = evaluate_learner(fresh, stream, tasks=300, steps=[0], device=torch.device("cpu"))
    assert evaluation.mean()[0] == pytest.approx(100 / 3, abs=5)


def test_task_chunk_bounds_what_is_worked_on_at_once_and_changes_no_figure(checkpoint, monkeypatch):
    expected = run(checkpoint)
    seen, adapt_and_score = [], MetaLearner.adapt_and_score

    def spy(self, tasks, *arguments):
        seen.append(len(tasks))
        return adapt_and_score(self, tasks, *arguments)

    monkeypatch.setattr(MetaLearner, "adapt_and_score", spy)
    algorithm = checkpoint.config["algorithm"] | {"task_chunk": 3}
    found = run(dataclasses.replace(checkpoint, config=checkpoint.config | {"algorithm": algorithm}))
    assert seen == [3, 3, 3, 3, 3, 3, 2]
    torch.testing.assert_close(found.losses, expected.losses)


def test_fewer_ways_are_served_and_more_are_refused(checkpoint):
    evaluation = run(checkpoint, **{"task.ways": 2, "eval.tasks": 100})
    assert 35 < evaluation.mean()[0] < 65
    with pytest.raises(UserError, match=r"head has 3 outputs, so it serves tasks of up to 3 classes, not of 4"):
        run(checkpoint, **{"task.ways": 4})


def test_other_data_than_the_checkpoint_s_are_refused(checkpoint):
    experiment = with_overrides(checkpoint.experiment, {"data.alphabets": 4}, "test")
    checkpoint.split["test"].append("Alphabet_99/character01")
    try:
        with pytest.raises(UserError, match=r"1 of the 27 test classes of the checkpoint are not in .*Alphabet_99"):
            evaluate(checkpoint, experiment, "test")
    finally:
        checkpoint.split["test"].pop()


def test_the_reports(checkpoint, tmp_path):
    evaluation = run(checkpoint)
    protocol = {"tasks": 20, "ways": 3, "shots": 1, "queries": 1, "split": "test", "normalisation": "batch"}
    content = tables.evaluation_json(evaluation, protocol)
    write_json(tmp_path / "new" / "report.json", content)
    content = json.loads((tmp_path / "new" / "report.json").read_text())
    assert list(content["accuracy"]) == ["0", "1", "2", "3"]
    assert content["accuracy"]["2"] == {"mean": evaluation.mean()[2], "ci95": evaluation.ci95()[2]}
    assert {key: content[key] for key in protocol} == protocol
    table = tables.evaluation_table(evaluation).splitlines()
    assert len(table) == 5
    assert f"{evaluation.mean()[3]:.2f}" in table[4]
    plots.plot_evaluation(evaluation, tmp_path / "plot.png", tables.evaluation_title(protocol))
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(UserError, match=r"the ending .docx is not one of .png, .svg, .pdf"):
        plots.plot_evaluation(evaluation, tmp_path / "plot.docx", "")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("algorithm.inner_lr", 0.1),
        ("algorithm.gradient", "first"),
        ("run.precision", "bfloat16"),
        ("train.meta_lr", 1.0),
    ],
)
def test_a_key_that_an_evaluation_cannot_change_is_refused(checkpoint, key, value):
    with pytest.raises(
        UserError, match=rf"the checkpoint was trained with `{key}` \S+, which an evaluation cannot cha"
    ):
        run(checkpoint, **{key: value})


def test_the_engine_may_be_another_than_in_training(checkpoint, monkeypatch):
    expected, used = run(checkpoint), []
    adapt = LoopMAML.adapt_and_score
    monkeypatch.setattr(LoopMAML, "adapt_and_score", lambda *arguments: used.append(1) or adapt(*arguments))
    assert torch.equal(run(checkpoint, **{"algorithm.engine": "loop"}).accuracies, expected.accuracies)
    assert used
