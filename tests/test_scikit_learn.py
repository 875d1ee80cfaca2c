"""The estimator in scikit-learn's hands, and without scikit-learn."""

import copy
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from maml_l2l.checkpoints.checkpoint import load_checkpoint
from maml_l2l.prediction import FewShotClassifier
from maml_l2l.system.errors import UserError
from tests.commands import ROOT
from tests.test_prediction import drawings, path

pytest.importorskip("sklearn")

from sklearn import exceptions
from sklearn.base import clone, is_classifier
from sklearn.calibration import CalibratedClassifierCV
from sklearn.model_selection import GridSearchCV, cross_val_predict, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.utils import estimator_checks, get_tags
from sklearn.utils.validation import check_is_fitted

__all__ = ["drawings", "path"]


@pytest.fixture
def classifier(path):
    return FewShotClassifier(path)


@pytest.fixture
def examples(drawings):
    """Eight drawings of each of three classes, one class after another, and their labels."""
    return [drawing for index in range(3) for drawing in drawings(index)[:8]], np.repeat(["a", "b", "c"], 8)


# With `two_d_array: False`, which is the truth, check_estimator runs the first of these and skips the rest, most of
# which fit rows of features. These need no data.
CHECKS = [
    estimator_checks.check_estimator_cloneable,
    estimator_checks.check_estimator_tags_renamed,
    estimator_checks.check_valid_tag_types,
    estimator_checks.check_estimator_repr,
    estimator_checks.check_do_not_raise_errors_in_init_or_set_params,
    estimator_checks.check_no_attributes_set_in_init,
    estimator_checks.check_fit_score_takes_y,
    estimator_checks.check_parameters_default_constructible,
    estimator_checks.check_get_params_invariance,
    estimator_checks.check_set_params,
]
NEEDS_ROWS = {"check_fit_score_takes_y": "it fits rows of ten features, and pictures are no rows"}


@pytest.mark.filterwarnings("ignore:Can't test estimator")
def test_the_estimator_checks_that_its_tags_leave_hold(classifier):
    results = estimator_checks.check_estimator(classifier, on_fail="raise")
    assert [(result["check_name"], result["status"]) for result in results] == [("check_estimator_cloneable", "passed")]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_the_estimator_checks_that_need_no_rows_of_features_hold(classifier, check):
    if check.__name__ in NEEDS_ROWS:
        with pytest.raises(UserError, match="Rows of pixels"):
            check("FewShotClassifier", classifier)
    else:
        check("FewShotClassifier", classifier)


def test_tags_say_what_it_takes(classifier):
    tags = get_tags(classifier)
    assert is_classifier(classifier)
    assert (tags.input_tags.two_d_array, tags.input_tags.three_d_array) == (False, True)
    assert tags.target_tags.required
    assert not hasattr(classifier, "n_features_in_")


def test_clones_are_unfitted_and_have_the_same_parameters(path, examples):
    fitted = FewShotClassifier(load_checkpoint(path), steps=2, device="cpu").fit(*examples)
    other = clone(fitted)
    assert other.get_params().keys() == {"checkpoint", "steps", "device"}
    assert (other.steps, other.device) == (2, "cpu")
    with pytest.raises(exceptions.NotFittedError):
        check_is_fitted(other)
    check_is_fitted(fitted)
    assert np.array_equal(other.fit(*examples).predict_proba(examples[0]), fitted.predict_proba(examples[0]))


def test_before_fit_it_raises_scikit_learn_s_error(classifier, examples):
    for method in (classifier.predict, classifier.predict_proba, classifier.pixels):
        with pytest.raises(exceptions.NotFittedError, match=r"Call fit\(X, y\) first"):
            method(examples[0])


def test_parameters_are_stored_as_given_and_unknown_ones_refused(classifier, path):
    nonsense = object()
    assert FewShotClassifier(nonsense, nonsense, nonsense).steps is nonsense
    assert classifier.set_params(steps=3, device="cpu") is classifier
    assert classifier.get_params() == {"checkpoint": path, "steps": 3, "device": "cpu"}
    with pytest.raises(UserError, match=r"there is no parameter 'step'. The parameters are checkpoint, steps, device."):
        classifier.set_params(step=3)
    assert len(repr(FewShotClassifier(load_checkpoint(path)))) < 200


def test_score_is_the_share_named_rightly(classifier, examples):
    pictures, labels = examples
    classifier.fit(pictures[::4], labels[::4])
    right = classifier.predict(pictures) == labels
    assert classifier.score(pictures, labels) == right.mean()
    assert classifier.score(pictures, labels, sample_weight=right + 0.0) == 1
    with pytest.raises(UserError, match=r"y: expected a label for each of 24 images, found the shape \(23,\)"):
        classifier.score(pictures, labels[1:])


def forms(pictures, folder):
    """The pictures as everything that cross-validation can index."""
    paths = [folder / f"{index}.png" for index in range(len(pictures))]
    for file, picture in zip(paths, pictures, strict=True):
        Image.fromarray(picture).save(file)
    objects = np.empty(len(pictures), dtype=object)
    objects[:] = [Image.fromarray(picture) for picture in pictures]
    return {
        "a list of arrays": pictures,
        "an array": np.stack(pictures),
        "a colour array": np.stack([np.stack([picture] * 3, axis=-1) for picture in pictures]),
        "a tensor": torch.from_numpy(np.stack(pictures))[:, None],
        "paths": paths,
        "strings": np.array([str(file) for file in paths]),
        "PIL images in an object array": objects,
    }


def test_cross_validation_takes_pictures_in_every_form(classifier, examples, tmp_path):
    pictures, labels = examples
    found = {name: cross_val_score(classifier, X, labels, cv=2) for name, X in forms(pictures, tmp_path).items()}
    for name, scores in found.items():
        assert scores.tolist() == found["an array"].tolist(), name
    assert found["an array"].mean() > 0.4
    assert set(cross_val_predict(classifier, pictures, labels, cv=2)) <= {"a", "b", "c"}


def test_a_pipeline_ends_in_it(classifier, examples):
    pictures, labels = examples
    inverted = np.stack([255 - picture for picture in pictures])
    pipeline = make_pipeline(FunctionTransformer(lambda images: 255 - images), classifier).fit(inverted, labels)
    assert np.array_equal(
        pipeline.predict_proba(inverted), clone(classifier).fit(pictures, labels).predict_proba(pictures)
    )
    assert pipeline.classes_.tolist() == ["a", "b", "c"]
    assert 0 <= pipeline.score(inverted, labels) <= 1


def test_a_grid_search_goes_over_steps_and_checkpoints(classifier, examples, path):
    grid = {"steps": np.arange(1, 4), "checkpoint": [path, load_checkpoint(path)]}
    search = GridSearchCV(classifier, grid, cv=2, error_score="raise").fit(*examples)
    assert search.best_params_["steps"] in (1, 2, 3)
    assert search.best_estimator_.steps_ == search.best_params_["steps"]
    assert search.predict(examples[0]).shape == (24,)


@pytest.mark.parametrize("ensemble", [True, False])
def test_its_probabilities_can_be_calibrated(classifier, examples, ensemble):
    calibrated = CalibratedClassifierCV(classifier, cv=2, ensemble=ensemble).fit(*examples)
    probabilities = calibrated.predict_proba(examples[0])
    assert probabilities.sum(1) == pytest.approx(np.ones(24))
    assert not np.allclose(probabilities, clone(classifier).fit(*examples).predict_proba(examples[0]), atol=0.01)


def test_copies_and_pickles_predict_alike(classifier, examples):
    expected = classifier.fit(*examples).predict_proba(examples[0])
    for other in (copy.deepcopy(classifier), pickle.loads(pickle.dumps(classifier))):
        assert np.array_equal(other.predict_proba(examples[0]), expected)


def test_fit_forgets_the_fit_before_it_and_changes_no_parameter(classifier, examples):
    pictures, labels = examples
    expected = classifier.fit(pictures, labels).predict_proba(pictures)
    before = classifier.get_params()
    classifier.fit(pictures[:16], labels[:16])
    assert classifier.classes_.tolist() == ["a", "b"]
    assert np.array_equal(classifier.fit(pictures, labels).predict_proba(pictures), expected)
    assert classifier.get_params() == before


def test_it_works_without_scikit_learn(path):
    code = (
        "import sys\nsys.modules['sklearn'] = None\nimport numpy as np\n"
        "from maml_l2l.prediction import FewShotClassifier\nfrom maml_l2l.system.errors import UserError\n"
        f"classifier = FewShotClassifier({str(path)!r})\n"
        "try:\n    classifier.predict([])\nexcept UserError as error:\n    print(type(error).__name__)\n"
        "pictures = list(np.random.default_rng(0).integers(0, 256, (4, 9, 9), dtype=np.uint8))\n"
        "print(classifier.fit(pictures, [0, 1, 2, 2]).set_params(steps=2).score(pictures, [0, 1, 2, 2]) <= 1)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.stdout, done.returncode) == ("NotFittedError\nTrue\n", 0), done.stderr
