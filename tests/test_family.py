"""A contract for every member of the family, from the config to a prediction."""

import numpy as np
import pytest
import torch

from maml_l2l.algorithms import build_learner
from maml_l2l.checkpoints.checkpoint import load_checkpoint
from maml_l2l.config import Algorithm, load_experiment, with_overrides
from maml_l2l.experiments.evaluation import evaluate
from maml_l2l.experiments.training import train
from maml_l2l.prediction import FewShotClassifier
from maml_l2l.system.errors import UserError
from tests.test_resume import same_state
from tests.test_training import TINY

MEMBERS = {
    "first order": ["algorithm.order=first"],
    "lslr": ["algorithm.update=lslr", "algorithm.inner_steps=2"],
    "meta_sgd": ["algorithm.update=meta_sgd"],
    "meta_curvature": ["algorithm.update=meta_curvature", "algorithm.learn_inner_lr=true"],
    "kronecker": ["algorithm.update=kronecker"],
    "head": ["algorithm.adapt=head"],
    "body": ["algorithm.adapt=body"],
    "patterns": ["algorithm.adapt=['norms.*', 'head.bias']"],
    "recompute": ["algorithm.inner_steps=5", "algorithm.recompute=sqrt", "algorithm.inner_lr=0.1"],
    "prototype": ["algorithm.head=prototype", "algorithm.normalisation=support"],
    "prototype and curvature": ["algorithm.head=prototype", "algorithm.update=meta_curvature"],
    "loop, prototype and curvature": [
        *("algorithm.engine=loop", "algorithm.head=prototype", "algorithm.update=meta_curvature"),
    ],
}


def experiment(member, root, **others):
    settings = [f"{key.replace('_', '.', 1)}={value}" for key, value in others.items()]
    return load_experiment(
        None, [*TINY, f"data.root={root}", "eval.tasks=6", "eval.steps=2", *MEMBERS[member], *settings]
    )


@pytest.mark.filterwarnings("ignore:.*(ink|signs)")  # the pictures are noise
@pytest.mark.parametrize("member", MEMBERS)
def test_trains_resumes_evaluates_and_predicts(member, glyphs_root, tmp_path):
    for folder, lengths in (("straight", [6]), ("resumed", [4, 6])):
        for length in lengths:
            settings = experiment(member, glyphs_root, train_iterations=length)
            train(settings, tmp_path / folder, resume=length > lengths[0])
    straight, resumed = (load_checkpoint(tmp_path / name / "last.pth") for name in ("straight", "resumed"))
    assert same_state(straight, resumed)
    if straight.transform is not None:
        assert all(torch.equal(straight.transform[name], value) for name, value in resumed.transform.items())
    again = [evaluate(straight).accuracies for _ in range(2)]
    assert torch.equal(*again)
    assert again[0].shape == (3, 6)
    pictures = np.random.default_rng(0).integers(0, 2, (4, 28, 28), dtype=np.uint8) * 255
    classifier = FewShotClassifier(straight).fit(list(pictures[:3]), [0, 1, 2])
    probabilities = classifier.predict_proba(list(pictures))
    assert probabilities.shape == (4, 3)
    np.testing.assert_allclose(probabilities.sum(1), 1, rtol=1e-5)


def test_prototypes_serve_more_ways_than_they_were_trained_with(glyphs_root, tmp_path):
    train(experiment("prototype", glyphs_root), tmp_path / "run")
    checkpoint = load_checkpoint(tmp_path / "run" / "best.pth")
    many = with_overrides(checkpoint.experiment, {"task.ways": 9}, "the test")
    assert evaluate(checkpoint, many, "train").accuracies.shape == (3, 6)
    learned = [*TINY, f"data.root={glyphs_root}"]
    train(load_experiment(None, learned), tmp_path / "learned")
    checkpoint = load_checkpoint(tmp_path / "learned" / "best.pth")
    with pytest.raises(UserError, match="head has 3 outputs, so it serves tasks of up to 3 classes, not of 9"):
        evaluate(checkpoint, with_overrides(checkpoint.experiment, {"task.ways": 9}, "the test"), "train")


def test_a_transform_is_the_start_of_another_run_that_has_the_same(glyphs_root, tmp_path):
    train(experiment("meta_curvature", glyphs_root), tmp_path / "first")
    start = tmp_path / "first" / "best.pth"
    train(experiment("meta_curvature", glyphs_root, model_pretrained=start, train_meta_lr=1e-9), tmp_path / "second")
    first, second = (load_checkpoint(path) for path in (start, tmp_path / "second" / "best.pth"))
    for name, value in first.transform.items():
        torch.testing.assert_close(second.transform[name], value, rtol=0, atol=1e-6)
    with pytest.raises(UserError, match=r"has algorithm\.update meta_curvature, and this run sgd. Give both the same"):
        train(
            experiment("prototype", glyphs_root, model_pretrained=start, algorithm_learn_inner_lr="true"),
            tmp_path / "x",
        )


def test_a_pattern_that_fits_no_parameter_is_refused():
    backbone = {"name": "conv4", "ways": 3, "channels": 1, "filters": 4, "downsample": "stride"}
    with pytest.raises(UserError, match=r"no parameter is called 'haed.\*'. There are: convolutions.0.weight"):
        build_learner(Algorithm(adapt=["haed.*"]), backbone)
