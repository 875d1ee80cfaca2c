"""Prediction for a user's own pictures: adapt to a few labelled ones, then name others."""

from __future__ import annotations

import inspect
import os
import reprlib
import threading
from collections.abc import Iterable, Sequence
from dataclasses import replace
from numbers import Integral
from typing import Any

import numpy as np
import torch

from maml_l2l.algorithms.adapted import AdaptedNetworks
from maml_l2l.checkpoints.checkpoint import Checkpoint, load_pretrained
from maml_l2l.config import with_overrides
from maml_l2l.data.given_pictures import pixels_of_all
from maml_l2l.pretrained import DEFAULT
from maml_l2l.system.device import find_device
from maml_l2l.system.errors import UserError, not_fitted

_QUERIES_AT_ONCE = 200
_one_thread = threading.Lock()  # for a moment parts of the network are others than its own


class FewShotClassifier:
    """A trained network that learns new classes from a few labelled pictures: an estimator as scikit-learn has them.

    It works without scikit-learn, and where that is installed with its `clone`, `Pipeline`, `cross_val_score`,
    `GridSearchCV` (over `steps`, `checkpoint`) and `CalibratedClassifierCV`.

    X is a list of pictures, an object array of them, or one array (N, H, W) or (N, H, W, 3) or tensor (N, 1, H, W) or
    (N, 3, H, W). A picture is the path of an image file, a PIL image, a NumPy array (H, W) or (H, W, 3), or a tensor
    (1, H, W) or (3, H, W); of any size, in uint8 from 0 to 255 or in floats from 0 to 1. It is given as a person sees
    it, and preprocessed as the training data were. Pictures are no rows of features: there is no `n_features_in_`, and
    a 2-D array is refused.

    Queries are normalised with the statistics of the pictures given to `fit` (`algorithm.normalisation: support`), so a
    prediction does not depend on what else is asked. Every mistake raises `UserError`, which is a `ValueError`.

    >>> import maml_l2l, numpy as np
    >>> stroke, ring = np.full((2, 105, 105), 255, np.uint8)
    >>> stroke[20:85, 50:55] = 0
    >>> ring[30:75, 30:75], ring[35:70, 35:70] = 0, 255
    >>> classifier = maml_l2l.FewShotClassifier().fit([stroke, ring], ["stroke", "ring"])
    >>> classifier.predict([ring[::-1, 5:]]).tolist()
    ['ring']
    """

    classes_: np.ndarray[Any, Any]
    """After `fit`: the different labels, sorted, in the order of `predict_proba`'s columns."""

    steps_: int
    """After `fit`: the gradient steps that adapted the network."""

    _estimator_type = "classifier"  # what scikit-learn before 1.6 asks for

    def __init__(
        self,
        checkpoint: Checkpoint | str | os.PathLike[str] = DEFAULT,
        steps: int | None = None,
        device: str = "auto",
    ):
        """Nothing is read or checked before `fit`.

        checkpoint: the name of a pretrained network, the path of a `.pth` file that training wrote, or what
        `load_checkpoint` returned.  steps: gradient steps that adapt the network; None: as many as in training.
        device: `auto` (CUDA where there is a GPU), `cpu`, `cuda`, `cuda:1`, ...
        """
        self.checkpoint, self.steps, self.device = checkpoint, steps, device

    def fit(self, X: Iterable[Any], y: Sequence[Any]) -> FewShotClassifier:
        """Take the pictures `X` and their labels `y` (strings, integers or whatever sorts) as support set; return self.

        Every class has one picture or more, not necessarily equally many; there are 2 classes up to the head's outputs.
        """
        checkpoint = self._loaded_checkpoint()
        steps = int(self.steps) if isinstance(self.steps, Integral) else self.steps
        overrides = {"algorithm.inner_steps": steps, "run.device": str(self.device)}
        outer = {"multi_step_loss": None}  # of the training alone, and it would ask for steps
        algorithm = checkpoint.experiment.algorithm.model_copy(update=outer)
        trained = checkpoint.experiment.model_copy(update={"algorithm": algorithm})
        experiment = with_overrides(trained, overrides, "the parameters of the prediction")
        classes, indices = _classes_of(y)
        support = pixels_of_all(X, experiment.data, warn=True)
        if len(support) != len(indices):
            raise UserError(f"there are {len(support)} images and {len(indices)} labels. Give each image one label.")
        if len(classes) < 2:
            raise UserError(f"all labels are {classes.tolist()[0]!r}. Give two classes or more.")
        checkpoint.check_ways(len(classes))
        device = find_device(experiment.run.device)
        self._learner, self._data = checkpoint.learner(device=device), experiment.data
        self._temperature = checkpoint.temperature
        self._task = support[None].to(device) / 255, torch.from_numpy(indices)[None].to(device), len(classes)
        self.classes_, self.steps_ = classes, experiment.algorithm.inner_steps
        with _one_thread, torch.no_grad():
            self._adapted = self._learner.adapt_once(*self._task, [self.steps_])
        self._on_the_way: AdaptedNetworks | None = None
        return self

    def predict(self, X: Iterable[Any]) -> np.ndarray[Any, Any]:
        """The most probable class of each of N pictures: (N,) entries of `classes_`."""
        probabilities = self.predict_proba(X)
        return self.classes_[probabilities.argmax(1)]

    def predict_proba(self, X: Iterable[Any]) -> np.ndarray[Any, Any]:
        """The probability of each class for each of N pictures: (N, len(classes_)) float32, rows sum to 1."""
        self._check_fitted()
        return self._probabilities(self._adapted, X)[0]

    def predict_proba_by_step(self, X: Iterable[Any]) -> np.ndarray[Any, Any]:
        """`predict_proba` after 0, 1, ..., `steps_` inner steps: (steps_ + 1, N, len(classes_)) float32."""
        self._check_fitted()
        if self._on_the_way is None and self.steps_:
            with _one_thread, torch.no_grad():
                before = self._learner.adapt_once(*self._task, range(self.steps_))
            self._on_the_way = replace(before, networks=[*before.networks, *self._adapted.networks])
        return self._probabilities(self._on_the_way or self._adapted, X)

    def score(self, X: Iterable[Any], y: Sequence[Any], sample_weight: Sequence[float] | None = None) -> float:
        """The share of the pictures `X`, or of their weights, that are named as `y` says."""
        predicted, labels = self.predict(X), np.asarray(y)
        if labels.shape != predicted.shape:
            raise UserError(f"y: expected a label for each of {len(predicted)} images, found the shape {labels.shape}.")
        return float(np.average(predicted == labels, weights=sample_weight))

    def pixels(self, X: Iterable[Any]) -> torch.Tensor:
        """What the network sees of N pictures: (N, C, H, W) uint8."""
        self._check_fitted()
        return pixels_of_all(X, self._data)

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """The constructor's parameters. deep: no difference, as none is an estimator."""
        return {name: getattr(self, name) for name in inspect.signature(type(self)).parameters}

    def set_params(self, **parameters: Any) -> FewShotClassifier:
        """Set parameters of the constructor, which the next `fit` uses; return self."""
        known = self.get_params()
        for name, value in parameters.items():
            if name not in known:
                raise UserError(f"there is no parameter {name!r}. The parameters are {', '.join(known)}.")
            setattr(self, name, value)
        return self

    def __repr__(self) -> str:
        given = ", ".join(f"{name}={reprlib.repr(value)}" for name, value in self.get_params().items())
        return f"{type(self).__name__}({given})"

    def _check_fitted(self) -> None:
        if not self.__sklearn_is_fitted__():
            raise not_fitted("there is nothing to predict from yet. Call fit(X, y) first.")

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "classes_")

    def __sklearn_tags__(self) -> Any:
        from sklearn.utils import ClassifierTags, InputTags, Tags, TargetTags  # it calls this, so it is there

        return Tags(
            estimator_type="classifier",
            target_tags=TargetTags(required=True),
            classifier_tags=ClassifierTags(),
            input_tags=InputTags(two_d_array=False, three_d_array=True, string=True),
        )

    def _loaded_checkpoint(self) -> Checkpoint:
        if isinstance(self.checkpoint, Checkpoint):
            return self.checkpoint
        if not isinstance(self.checkpoint, (str, os.PathLike)):
            kind = type(self.checkpoint).__name__
            raise UserError(f"checkpoint: expected the path of a file, a name or a Checkpoint, found {kind}.")
        return load_pretrained(self.checkpoint)

    def _probabilities(self, adapted: AdaptedNetworks, X: Iterable[Any]) -> np.ndarray[Any, Any]:
        """(numbers of steps, N, len(classes_)) of the networks `adapted`."""
        parts = pixels_of_all(X, self._data, warn=True).split(_QUERIES_AT_ONCE)
        device = adapted.support.device
        with _one_thread, torch.no_grad():
            logits = [adapted.answer(part[None].to(device) / 255, "support")[:, 0] for part in parts]
        return (torch.cat(logits, dim=1) / self._temperature).softmax(-1).cpu().numpy()


def _classes_of(labels: Sequence[Any]) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """The sorted classes, and the index of each label's class: (N,) int64."""
    try:
        array = np.asarray(labels)
        if array.ndim == 1:
            _check_labels(list(labels), array)
            return np.unique(array, return_inverse=True)
        found = f"an array of shape {array.shape}"
    except UserError:
        raise
    except (TypeError, ValueError) as error:
        found = f"what does not sort ({error})"
    raise UserError(f"labels must be a list of strings or integers, one for each image; found {found}.")


def _check_labels(labels: list[Any], array: np.ndarray[Any, Any]) -> None:
    """Raise `UserError` where a label is missing, or where NumPy has made strings of numbers among strings."""
    for index, label in enumerate(labels):
        if label is None or label != label:  # NaN, as in a table with empty cells
            raise UserError(f"labels[{index}] is missing (found {label}). Leave that image out, or name its class.")
        if array.dtype.kind == "U" and not isinstance(label, str):
            raise UserError(
                f"labels must be of one kind; found strings, and {label!r} at {index}. str(label) makes one."
            )
