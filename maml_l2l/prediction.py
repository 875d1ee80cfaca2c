"""Prediction for a user's own pictures: adapt to a few labelled ones, then name others."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from maml_l2l.checkpoints.checkpoint import Checkpoint, load_checkpoint
from maml_l2l.config import Data, with_overrides
from maml_l2l.data.pictures import picture_pixels, read_picture
from maml_l2l.system.device import find_device
from maml_l2l.system.errors import UserError
from maml_l2l.tasks.batch import TaskBatch

_QUERIES_AT_ONCE = 200


class FewShotClassifier:
    """A trained network that learns new classes from a few labelled pictures, in the manner of scikit-learn.

    A picture is the path of an image file, a PIL image, a NumPy array (H, W) or (H, W, 3), or a tensor (1, H, W) or
    (3, H, W); of any size, in uint8 from 0 to 255 or in floats from 0 to 1. It is given as a person sees it, so with
    dark ink on light paper where Omniglot or glyphs trained the network, and preprocessed as the training data were.

    Queries are normalised with the statistics of the pictures given to `fit` (`algorithm.normalisation: support`), so a
    prediction does not depend on what else is asked. Every mistake raises `UserError`.
    """

    classes_: np.ndarray
    """After `fit`: the different labels, sorted, in the order of `predict_proba`'s columns."""

    def __init__(self, checkpoint: Checkpoint, steps: int | None = None):
        """`steps`: gradient steps that adapt the network; None: as many as in training."""
        overrides = {"algorithm.inner_steps": steps}
        experiment = with_overrides(checkpoint.experiment, overrides, origin="the steps of the prediction")
        self.steps, self._data = experiment.algorithm.inner_steps, experiment.data
        self._device = find_device()  # the checkpoint's is of the machine that trained it
        self._checkpoint, self._learner = checkpoint, checkpoint.learner().to(self._device)
        self._support: tuple[torch.Tensor, torch.Tensor] | None = None

    @classmethod
    def load(cls, path: str | Path, steps: int | None = None) -> FewShotClassifier:
        """The classifier of the checkpoint file `path`."""
        return cls(load_checkpoint(path), steps)

    def fit(self, images: Iterable[Any], labels: Sequence[Any]) -> FewShotClassifier:
        """Take `images` and their `labels` (strings, integers or whatever sorts) as the support set; return self.

        Every class has one picture or more, not necessarily equally many; there are 2 classes up to the head's outputs.
        """
        classes, indices = _classes_of(labels)
        support = self.pixels(images)
        if len(support) != len(indices):
            raise UserError(f"there are {len(support)} images and {len(indices)} labels. Give each image one label.")
        if len(classes) < 2:
            raise UserError(f"all labels are {classes.tolist()[0]!r}. Give two classes or more.")
        self._checkpoint.check_ways(len(classes))
        self.classes_, self._support = classes, (support, torch.from_numpy(indices))
        return self

    def predict(self, images: Iterable[Any]) -> np.ndarray:
        """The most probable class of each of N pictures: (N,) entries of `classes_`."""
        probabilities = self.predict_proba(images)
        return self.classes_[probabilities.argmax(1)]

    @torch.no_grad()
    def predict_proba(self, images: Iterable[Any]) -> np.ndarray:
        """The probability of each class for each of N pictures: (N, len(classes_)) float32, rows sum to 1."""
        if self._support is None:
            raise UserError("there is nothing to predict from yet. Call fit(images, labels) first.")
        logits = [self._logits(queries) for queries in self.pixels(images).split(_QUERIES_AT_ONCE)]
        return torch.cat(logits).softmax(1).cpu().numpy()

    def pixels(self, images: Iterable[Any]) -> torch.Tensor:
        """What the network sees of N pictures: (N, C, H, W) uint8."""
        if isinstance(images, str):
            raise UserError(f"expected a list of pictures, found the string {images!r}. Put the path into a list.")
        try:
            images = list(images)
        except TypeError:
            kind = type(images).__name__
            raise UserError(f"expected a list or an array of pictures, found one {kind}. Put it into a list.") from None
        if not images:
            raise UserError("there are no pictures in the list. Give one or more.")
        return torch.from_numpy(np.stack([_pixels(image, i, self._data) for i, image in enumerate(images)]))

    def _logits(self, queries: torch.Tensor) -> torch.Tensor:
        """queries: (N, C, H, W) uint8 -> (N, len(classes_)) of the network adapted to the support set."""
        support, labels = self._support
        unknown = torch.full((1, len(queries)), -1)
        tensors = support[None] / 255, labels[None], queries[None] / 255, unknown
        task = TaskBatch(*tensors, len(self.classes_), check=False)
        return self._learner.adapt_and_score(task.to(self._device), [self.steps], normalisation="support")[0, 0]


def _classes_of(labels: Sequence[Any]) -> tuple[np.ndarray, np.ndarray]:
    """The sorted classes, and the index of each label's class: (N,) int64."""
    try:
        array = np.asarray(labels)
        if array.ndim == 1:
            return np.unique(array, return_inverse=True)
        found = f"an array of shape {array.shape}"
    except (TypeError, ValueError) as error:
        found = f"what does not sort ({error})"
    raise UserError(f"labels must be a list of strings or integers, one for each image; found {found}.")


def _pixels(image: Any, index: int, data: Data) -> np.ndarray:
    """(C, H, W) uint8 of one picture. Raises `UserError` naming its path, or its index, where it is none."""
    if isinstance(image, (str, os.PathLike)):
        return read_picture(image, data)
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
