"""Published protocols by name: the settings against the publications, the tasks by who is drawn, ensembles by hand."""

import dataclasses
import json
from collections import Counter

import pytest
import torch
from PIL import Image

from maml_l2l import eval as eval_command
from maml_l2l.checkpoints.checkpoint import save_checkpoint
from maml_l2l.config import PROTOCOLS, load_experiment, under_protocol, with_overrides
from maml_l2l.data.labelled_images import LabelledImages
from maml_l2l.data.sources import class_split, load_data
from maml_l2l.experiments.evaluation import evaluate
from maml_l2l.experiments.fitting import check_images
from maml_l2l.experiments.trainer import MetaTrainer
from maml_l2l.reports import tables
from maml_l2l.system.errors import UserError
from maml_l2l.tasks.protocols import RotatedClasses, WithinAlphabets
from maml_l2l.tasks.stream import task_stream
from tests.images import identities, numbered_images
from tests.test_training import TINY

SIZES = {"shots": 1, "queries": 1, "rotate": False, "seed": 0, "split": "test"}


@pytest.fixture(scope="module")
def network(glyphs_root):
    """`network(seed, *overrides)`: a checkpoint of random weights."""

    def make(seed=0, *overrides):
        settings = [*TINY, "eval.steps=1", f"data.root={glyphs_root}", f"run.seed={seed}", *overrides]
        experiment = load_experiment(None, settings)
        images = load_data(experiment.data)
        return MetaTrainer(experiment, images, class_split(experiment.data, images), torch.device("cpu")).validated()

    return make


# --- settings ---


@pytest.mark.parametrize(
    ("name", "expected"),  # ways, shots, queries, tasks, rotation of a network trained on 5-way 3-shot, 2 queries
    [
        ("finn", (5, 3, 3, 1000, True)),
        ("mamlpp", (5, 3, 1, 600, False)),
        ("prototypical", (5, 3, 15, 1000, True)),
        ("reptile", (5, 3, 1, 10_000, False)),
        ("lake", (20, 1, 1, 400, False)),
    ],
)
def test_a_protocol_sets_what_its_publication_says_and_explicit_options_win(name, expected):
    def sizes(*asked):
        found = under_protocol(trained, name, *asked)
        return *(getattr(found.task, key) for key in ("ways", "shots", "queries")), found.eval.tasks, found.data.rotate

    trained = load_experiment(None, ["task.ways=5", "task.shots=3", "task.queries=2", "eval.tasks=7"])
    assert sizes({}, "the test") == expected
    ways, _, queries, _, rotate = expected
    queries = 2 if name == "finn" else queries  # as many as there are shots now
    assert sizes({"task.shots": 2, "eval.tasks": 50}, "the test") == (ways, 2, queries, 50, rotate)
    asked = {"task.queries": 4, "task.ways": 3}, "the test", [f"data.rotate={json.dumps(not rotate)}"]
    assert sizes(*asked)[::2] == (3, 4, not rotate)


def test_no_protocol_changes_nothing_but_what_is_asked_for():
    trained = load_experiment(None, [])
    overrides = {"task.queries": 4}
    assert under_protocol(trained, None, overrides, "x") == with_overrides(trained, overrides, "x")
    with pytest.raises(UserError, match=r"there is no protocol finnn. Name one of finn, mamlpp, proto"):
        under_protocol(trained, "finnn", {}, "x")


# --- tasks ---


def alphabets_of(sizes, drawings=20):
    """`numbered_images` whose classes lie in alphabets A, B, ... of these sizes."""
    images = numbered_images(sum(sizes), drawings)
    letters = "".join(letter * size for letter, size in zip("ABCDE", sizes, strict=False))
    names = tuple(f"{letter}/character{number:02d}" for number, letter in enumerate(letters))
    return LabelledImages(images.pixels, images.labels, names), letters


def test_tasks_within_alphabets_are_drawn_by_one_person_and_queried_by_another(caplog):
    images, letters = alphabets_of([5, 2, 3])
    stream = WithinAlphabets(images, list(images.class_names), ways=3, **SIZES)
    assert "alphabets of fewer than 3 test characters are left out: B (2)" in caplog.text
    assert stream.class_names == [name for name in images.class_names if name[0] != "B"]
    tasks = stream.batch(0, 300)
    support, query = identities(tasks.support), identities(tasks.query)  # (T, 3, [class, drawer, turns])
    assert torch.equal(support[..., 0], query[..., 0])
    used = Counter()
    for of_support, of_query in zip(support.tolist(), query.tolist(), strict=True):
        characters = [character for character, _, _ in of_support]
        assert len(set(characters)) == 3
        (alphabet,) = {letters[character] for character in characters}
        (first,), (second,) = ({drawer for _, drawer, _ in part} for part in (of_support, of_query))
        assert first != second
        used[alphabet, first, second] += 1
    assert (support[..., 2] == 0).all() and (query[..., 2] == 0).all()
    by_alphabet = Counter(alphabet for alphabet, *_ in used.elements())
    assert by_alphabet.keys() == {"A", "C"} and abs(by_alphabet["A"] - 150) < 40  # equally likely
    assert {first for _, first, _ in used} == {second for *_, second in used} == set(range(20))

    again = WithinAlphabets(images, list(images.class_names), ways=3, **SIZES)
    assert torch.equal(again.batch(7, 1).query[0], tasks.query[7])
    other = WithinAlphabets(images, list(images.class_names), ways=3, **SIZES | {"seed": 1})
    assert not torch.equal(other.batch(0, 20).support, tasks.support[:20])


def test_more_shots_and_queries_within_an_alphabet_are_of_further_people():
    images, _ = alphabets_of([4])
    stream = WithinAlphabets(images, list(images.class_names), ways=4, **SIZES | {"shots": 2, "queries": 3})
    batch = stream.batch(0, 20)
    for support, query in zip(identities(batch.support), identities(batch.query), strict=True):
        by_class = torch.cat([support.view(4, 2, 3), query.view(4, 3, 3)], 1)[..., 1]
        assert (by_class == by_class[0]).all() and len(set(by_class[0].tolist())) == 5


def test_alphabets_that_do_not_serve_are_refused():
    images, _ = alphabets_of([3, 2])
    with pytest.raises(UserError, match=r"task.ways is 4, but no alphabet of the test classes has more than 3 char"):
        WithinAlphabets(images, list(images.class_names), ways=4, **SIZES)
    images, _ = alphabets_of([3], drawings=19)
    with pytest.raises(
        UserError, match=r"A/character00 has 19 drawings, and who drew them is known where there are 20"
    ):
        WithinAlphabets(images, list(images.class_names), ways=3, **SIZES)


def test_turned_classes_are_classes_of_their_own():
    images = numbered_images(3, 5)
    stream = RotatedClasses(images, list(images.class_names), ways=3, **SIZES | {"queries": 2, "rotate": True})
    batch = stream.batch(0, 400)
    met = 0
    for support, query in zip(identities(batch.support).tolist(), identities(batch.query).tolist(), strict=True):
        turned = [(name, turns) for name, _, turns in support]
        assert len(set(turned)) == 3
        assert [(name, turns) for name, _, turns in query[::2]] == turned
        assert all(len({support[c][1], query[2 * c][1], query[2 * c + 1][1]}) == 3 for c in range(3))
        met += len({name for name, _ in turned}) < 3
    # 3 of 12 classes, all of different characters: 12 x 8 x 4 of 12 x 11 x 10 draws
    assert met / 400 == pytest.approx(1 - 384 / 1320, abs=0.08)


# --- evaluations ---


def test_a_protocol_is_measured_as_its_settings_are(network):
    checkpoint = network()
    sizes = {"data.rotate": False, "task.queries": 1, "eval.tasks": 600}
    expected = evaluate(checkpoint, with_overrides(checkpoint.experiment, sizes, "the test"))
    assert torch.equal(evaluate(checkpoint, protocol="mamlpp").accuracies, expected.accuracies)
    turned = with_overrides(checkpoint.experiment, {"eval.tasks": 20}, "the test")
    ours, theirs = (evaluate(checkpoint, turned, protocol=name).losses for name in ("finn", "prototypical"))
    assert not torch.equal(ours, theirs)


def test_lake_evaluates_whole_test_alphabets_and_counts_which_classes_trained(network):
    small = {"task.ways": 3, "eval.tasks": 4}
    for split, seen in (("alphabets", 0), ("finn", None)):
        checkpoint = network(0, f"data.split={split}")
        experiment = under_protocol(checkpoint.experiment, "lake", small, "the test")
        found = evaluate(checkpoint, experiment, protocol="lake")
        assert found.classes == 33  # those of the last of three alphabets of glyphs
        expected = [name for name in checkpoint.split["train"] if name.startswith("Alphabet_03/")]
        assert found.seen_classes == len(expected) == (len(expected) if seen is None else seen)
    assert found.seen_classes > 10
    validation = evaluate(checkpoint, experiment, "val", protocol="lake")
    assert validation.classes <= len(checkpoint.split["val"]) and validation.seen_classes == 0


def test_lake_needs_to_know_who_drew(network, tmp_path):
    checkpoint = network()
    for number, name in enumerate(("a/0", "a/1", "b/0", "b/1")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("L", (28, 28), 40 * number).save(tmp_path / f"{name}.png")
    settings = [f"data.root={tmp_path}", "data.name=folder", "data.image_size=28", "data.channels=1", "task.ways=2"]
    experiment = under_protocol(checkpoint.experiment, "lake", {"task.ways": 2}, "the test", settings)
    with pytest.raises(UserError, match=r"the protocol lake asks who drew each picture, which a folder does not say"):
        evaluate(checkpoint, experiment, protocol="lake")


def test_an_ensemble_has_the_mean_of_the_outputs(network):
    networks = [network(seed, *more) for seed, more in enumerate([[], ["model.filters=4"], ["task.ways=4"]])]
    experiment = with_overrides(networks[0].experiment, {"eval.tasks": 12, "eval.steps": 2}, "the test")
    found = evaluate(networks[0], experiment, ensemble=networks[1:])
    tasks = task_stream(experiment, load_data(experiment.data), networks[0].split, "test").batch(0, 12)
    outputs = [one.learner().adapt_and_score(tasks, [0, 1, 2])[..., :3].detach() for one in networks]
    mean = sum(outputs) / 3
    right = (mean.argmax(-1) == tasks.query_labels).double().mean(-1)
    torch.testing.assert_close(found.accuracies, 100 * right)
    assert not torch.equal(found.accuracies, evaluate(networks[0], experiment).accuracies)
    losses = [torch.nn.functional.cross_entropy(*pair) for pair in zip(mean[2], tasks.query_labels, strict=True)]
    torch.testing.assert_close(found.losses[2].float(), torch.stack(losses))


@pytest.mark.parametrize(
    ("section", "overrides", "message"),
    [
        ("task", {"ways": 2}, r"other.pth: the checkpoint's head has 2 outputs, so it serves tasks of up to 2 classes"),
        (
            "data",
            {"ink": "normalised"},
            r"other.pth was trained with `data.ink` 'normalised', and the first network with 'f",
        ),
        (
            "data",
            {"split": "alphabets"},
            r"other.pth has another class split than the first network, so a class that one",
        ),
    ],
)
def test_a_network_that_does_not_fit_is_refused(network, tmp_path, section, overrides, message):
    other = network(1, *(f"{section}.{key}={value}" for key, value in overrides.items() if key != "ink"))
    config = other.config | {section: other.config[section] | overrides}  # drawing other glyphs takes seconds
    save_checkpoint(dataclasses.replace(other, config=config), tmp_path / "other.pth")
    with pytest.raises(UserError, match=message) as refused:
        evaluate(network(), ensemble=[tmp_path / "other.pth"])
    assert "\n" not in str(refused.value)


def test_a_member_that_the_loop_cannot_adapt_is_adapted_by_the_other_engine(network):
    first = network(0, "algorithm.engine=loop")
    pulled = network(1, "algorithm.gradient=implicit", "algorithm.proximal=50", "algorithm.inner_steps=3")
    experiment = with_overrides(first.experiment, {"eval.tasks": 4, "eval.steps": 3}, "the test")
    tasks = task_stream(experiment, load_data(experiment.data), first.split, "test").batch(0, 4)
    outputs = [one.learner().adapt_and_score(tasks, [3])[0].detach() for one in (first, pulled)]
    expected = torch.nn.functional.cross_entropy((sum(outputs) / 2).flatten(0, 1), tasks.query_labels.flatten())
    found = evaluate(first, experiment, ensemble=[pulled]).losses[3].mean()
    torch.testing.assert_close(found.float(), expected)


def test_all_members_have_the_size_of_the_images(network):
    images = load_data(network().experiment.data)
    images = dataclasses.replace(images, pixels=images.pixels[:, :, :20, :20])
    check_images([network()], images)  # convolutions take any
    with pytest.raises(UserError, match=r"takes images of image_size 28, the data have 20. Set data.image_size=28"):
        check_images([network(), network(1, "model.name=mlp")], images)


def test_the_command_names_protocol_and_ensemble_wherever_it_reports(network, tmp_path, monkeypatch, capsys):
    paths = [str(tmp_path / name) for name in ("one.pth", "two.pth")]
    for seed, path in enumerate(paths):
        save_checkpoint(network(seed), path)
    titles = []
    monkeypatch.setattr("maml_l2l.reports.plots.plot_evaluation", lambda *arguments: titles.append(arguments[2]))
    options = ["--protocol", "lake", "--n_way", "3", "--tasks", "5", "--steps", "1"]
    files = ["--json", str(tmp_path / "x.json"), "--plot", str(tmp_path / "x.png")]
    arguments = ["eval", "--model", paths[0], *options, *files, "--ensemble", paths[1]]
    monkeypatch.setattr("sys.argv", arguments)
    eval_command.main()
    title, *rest = capsys.readouterr().out.splitlines()
    expected = (
        "protocol lake: 3-way 1-shot, 1 query a class, 5 tasks, test classes, batch statistics, mean of 2 networks"
    )
    assert [title] == titles == [expected]
    content = json.loads((tmp_path / "x.json").read_text())
    assert (content["protocol"], content["ensemble"], content["ways"]) == ("lake", [paths[1]], 3)
    assert content["classes"] == 33 and 0 < content["seen_classes"] < 33
    assert any("20 fixed runs of 20 trials, which are not among the data" in line for line in rest)
    assert any(f"{content['seen_classes']} of the 33 classes trained the network" in line for line in rest)


def test_every_protocol_names_its_publication():
    for name, protocol in PROTOCOLS.items():
        content = tables.evaluation_protocol(load_experiment(None, []), "test", name)
        assert content["source"] == protocol.source and "20" in protocol.source
        assert tables.evaluation_title(content).startswith(f"protocol {name}: ")
