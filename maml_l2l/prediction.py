"""Prediction for a user's own pictures: adapt to a few labelled ones, then name others."""

from __future__ import annotations

import inspect
import os
import reprlib
import warnings
from collections.abc import Iterable, Sequence
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from maml_l2l.algorithms.adapted import AdaptedNetworks
from maml_l2l.checkpoints.checkpoint import Checkpoint, load_pretrained
from maml_l2l.config import Data, with_overrides
from maml_l2l.data.drawing_problems import drawing_problem
from maml_l2l.data.pictures import picture_pixels, read_picture
from maml_l2l.pretrained import DEFAULT
from maml_l2l.system.device import find_device
from maml_l2l.system.errors import UserError, not_fitted

_QUERIES_AT_ONCE = 200


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
        experiment = with_overrides(checkpoint.experiment, overrides, origin="the parameters of the prediction")
        classes, indices = _classes_of(y)
        support = _pixels_of_all(X, experiment.data, warn=True)
        if len(support) != len(indices):
            raise UserError(f"there are {len(support)} images and {len(indices)} labels. Give each image one label.")
        if len(classes) < 2:
            raise UserError(f"all labels are {classes.tolist()[0]!r}. Give two classes or more.")
        checkpoint.check_ways(len(classes))
        device = find_device(experiment.run.device)
        self._learner, self._data = checkpoint.learner().to(device), experiment.data
        self._task = support[None].to(device) / 255, torch.from_numpy(indices)[None].to(device), len(classes)
        self.classes_, self.steps_ = classes, experiment.algorithm.inner_steps
        with torch.no_grad():
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
        if self._on_the_way is None:
            with torch.no_grad():
                way = self._learner.adapt_once(*self._task, range(self.steps_))
            networks = way.networks + self._adapted.networks
            self._on_the_way = AdaptedNetworks(way.learner, way.support, way.ways, networks)
        return self._probabilities(self._on_the_way, X)

    def score(self, X: Iterable[Any], y: Sequence[Any], sample_weight: Sequence[float] | None = None) -> float:
        """The share of the pictures `X`, or of their weights, that are named as `y` says."""
        predicted, labels = self.predict(X), np.asarray(y)
        if labels.shape != predicted.shape:
            raise UserError(f"y: expected a label for each of {len(predicted)} images, found the shape {labels.shape}.")
        return float(np.average(predicted == labels, weights=sample_weight))

    def pixels(self, X: Iterable[Any]) -> torch.Tensor:
        """What the network sees of N pictures: (N, C, H, W) uint8."""
        self._check_fitted()
        return _pixels_of_all(X, self._data)

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
        parts = _pixels_of_all(X, self._data, warn=True).split(_QUERIES_AT_ONCE)
        device = adapted.support.device
        with torch.no_grad():
            logits = [adapted.answer(part[None].to(device) / 255, "support")[:, 0] for part in parts]
        return torch.cat(logits, dim=1).softmax(-1).cpu().numpy()


def _classes_of(labels: Sequence[Any]) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """The sorted classes, and the index of each label's class: (N,) int64."""
    try:
        array = np.asarray(labels)
        if array.ndim == 1:
            return np.unique(array, return_inverse=True)
        found = f"an array of shape {array.shape}"
    except (TypeError, ValueError) as error:
        found = f"what does not sort ({error})"
    raise UserError(f"labels must be a list of strings or integers, one for each image; found {found}.")


def _pixels_of_all(images: Iterable[Any], data: Data, warn: bool = False) -> torch.Tensor:
    """(N, C, H, W) uint8. warn: of each drawing in which the network sees nothing, or not one sign."""
    if isinstance(images, str):
        raise UserError(f"expected a list of pictures, found the string {images!r}. Put the path into a list.")
    _check_not_one_picture(images)
    try:
        images = list(images)
    except TypeError:
        kind = type(images).__name__
        raise UserError(f"expected a list or an array of pictures, found one {kind}. Put it into a list.") from None
    if not images:
        raise UserError("there are no pictures in the list. Give one or more.")
    pixels = np.stack([_pixels(image, i, data) for i, image in enumerate(images)])
    if warn and data.holds_drawings:
        for index, (image, seen) in enumerate(zip(images, pixels, strict=True)):
            problem = drawing_problem(seen[0])
            if problem:
                name = image if isinstance(image, (str, os.PathLike)) else f"images[{index}]"
                warnings.warn(f"{name} {problem}, as the network sees it (predict --plot draws that)", stacklevel=3)
    return torch.from_numpy(pixels)


def _check_not_one_picture(images: Any) -> None:
    """Raise `UserError` where the rows of an array would be taken for pictures."""
    shape, of_tensor = tuple(getattr(images, "shape", ())), isinstance(images, torch.Tensor)
    if len(shape) == 2:
        further = "Rows of pixels? Reshape them to (N, H, W)."
    elif len(shape) == 3 and of_tensor:
        further = "Grey pictures? unsqueeze(1) makes them (N, 1, H, W)."
    elif len(shape) == 3 and shape[2] in (1, 3, 4):
        further = "Grey pictures so narrow? Make a list of them."
    else:
        return
    expected = "(N, C, H, W)" if of_tensor else "(N, H, W) or (N, H, W, 3)"
    raise UserError(f"expected pictures {expected}, found {shape}. One picture? Put it into a list. {further}")


def _pixels(image: Any, index: int, data: Data) -> np.ndarray[Any, Any]:
    """(C, H, W) uint8 of one picture. Raises `UserError` naming its path, or its index, where it is none."""
    if isinstance(image, (str, os.PathLike)):
        return read_picture(Path(image), data)
    try:
        return picture_pixels(image if isinstance(image, Image.Image) else _pil_image(image), data)
    except Exception as error:  # a PIL image may read a damaged file only now, which raises almost anything
        raise UserError(f"images[{index}] is no picture: {error}.") from None


def _pil_image(image: Any) -> Image.Image:
    """Raises `ValueError` where shape or values are not those of a picture."""
    if isinstance(image, torch.Tensor):
        image = image.detach().cpu()
        values = (image.movedim(0, -1) if image.ndim == 3 else image).numpy()
    else:
        values = np.asarray(image)
    shape = np.shape(image)
    if values.ndim == 3 and values.shape[2] == 1:
        values = values[..., 0]
    if not values.size or values.ndim not in (2, 3) or values.shape[2:] not in ((), (3,)):
        layout = "(C, H, W) with C = 1 or 3" if isinstance(image, torch.Tensor) else "(H, W) or (H, W, 3)"
        raise ValueError(f"expected the shape {layout}, found {tuple(shape)}")
    if values.dtype.kind in "bf" and values.min() >= 0 and values.max() <= 1:
        values = np.rint(255 * values).astype(np.uint8)
    if values.dtype != np.uint8:
        found = f"{values.dtype} from {values.min()} to {values.max()}"
        raise ValueError(f"expected uint8 from 0 to 255 or floats from 0 to 1, found {found}")
    return Image.fromarray(values)
