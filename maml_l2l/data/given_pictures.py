"""What callers give as pictures: paths, PIL images, arrays and tensors, as the pixels that the network sees."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from maml_l2l.config import Data
from maml_l2l.data.drawing_problems import drawing_problem
from maml_l2l.data.pictures import UnreadablePictures, picture_pixels, read_picture
from maml_l2l.system.errors import UserError, listing
from maml_l2l.system.messages import warn_user


def pixels_of_all(images: Iterable[Any], data: Data, warn: bool = False) -> torch.Tensor:
    """(N, C, H, W) uint8 of N pictures, as `FewShotClassifier` takes them.

    warn: of each drawing in which the network sees nothing, or not one sign.
    Raises `UserError` where `images` holds none, or looks like one picture, and `UnreadablePictures`, which names all
    that cannot be read.
    """
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
    pixels = np.stack(_readable(images, data))
    if warn and data.holds_drawings:
        for index, (image, seen) in enumerate(zip(images, pixels, strict=True)):
            problem = drawing_problem(seen[0])
            if problem:
                name = image if isinstance(image, (str, os.PathLike)) else f"images[{index}]"
                warn_user(f"{name} {problem}, as the network sees it (predict --plot draws that)")
    return torch.from_numpy(pixels)


def readable_pictures(paths: Sequence[str], data: Data) -> list[str]:
    """Those of `paths` that can be read; the others are named in a warning. Raises `UserError` where none can."""
    try:
        _readable(paths, data)
    except UnreadablePictures as error:
        left_out = listing(list(error.problems.values()), most=100)
        if len(error.problems) == len(paths):
            raise UserError(f"none of {len(paths)} pictures can be read: {left_out}") from None
        warn_user(f"left out {len(error.problems)} of {len(paths)} pictures: {left_out}")
        return [path for index, path in enumerate(paths) if index not in error.problems]
    return list(paths)


def _check_not_one_picture(images: Any) -> None:
    """Raise `UserError` where the rows of an array would be taken for pictures."""
    shape = tuple(getattr(images, "shape", ()))
    of_tensor = isinstance(images, torch.Tensor)
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


def _readable(images: Sequence[Any], data: Data) -> list[np.ndarray[Any, Any]]:
    """(C, H, W) uint8 of each. Raises `UnreadablePictures`, which names all that cannot be read."""
    pixels, problems = [], {}
    for index, image in enumerate(images):
        try:
            pixels.append(_pixels(image, index, data))
        except UserError as error:
            problems[index] = str(error)
    if problems:
        raise UnreadablePictures(problems, len(images))
    return pixels


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
