"""From one picture, as an image file holds it, to the pixels that the network sees."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from maml_l2l.config import Data
from maml_l2l.data.depth import UnknownRange, eight_bits
from maml_l2l.data.folder_contents import is_archive
from maml_l2l.data.formats import add_heif_reader, foreign_format, formats, png_pixels
from maml_l2l.data.ink import ink_pixels
from maml_l2l.data.normalised_ink import normalised_ink
from maml_l2l.system.errors import UserError, listing
from maml_l2l.system.files import open_regular, reason, user_path

_UsedT = TypeVar("_UsedT")

_GAP = 3  # a JPEG is decoded at so many times the size that it gets, at least

# How the camera's picture is turned back, by the EXIF orientation (EXIF 2.32, tag 0x0112); 1 is upright.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class UnreadablePictures(UserError):
    """Some of many pictures cannot be read. problems: what is wrong, by the number of the picture from 0."""

    def __init__(self, problems: dict[int, str], among: int):
        self.problems, self.among = problems, among
        found = list(problems.values())
        several = f"{len(found)} of {among} pictures cannot be read (predict --skip_damaged leaves them out): "
        in_one = listing([problem.rstrip(".") for problem in found], most=100)
        super().__init__(found[0] if len(found) == 1 else f"{several}{in_one}.")

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.problems, self.among)


def picture_pixels(image: Image.Image, data: Data) -> np.ndarray:
    """Return a picture as (C, H, W) uint8, as the data set that `data` describes holds it.

    It is turned as its EXIF orientation says. With `data.ink: normalised` it then goes the way of `normalised_ink`.
    Else it lies on white where it is transparent. For omniglot and glyphs it goes the way of `ink_pixels`. For a folder
    it becomes grey or RGB (`data.channels`), square (`data.fit`) and `data.image_size` pixels wide, by antialiased
    bilinear resizing, and untouched where it has that size already; `data.invert` comes last.
    Raises `UnknownRange` where its numbers have no known range.
    """
    turn = _turn(image)
    if data.ink == "normalised":
        return normalised_ink(_turned(image, turn))[None]
    image = _on_white(_turned(eight_bits(image), turn))
    if data.name != "folder":
        return ink_pixels(image)[None]
    image = image.convert("L" if data.channels == 1 else "RGB")
    size = (data.image_size, data.image_size)
    if data.fit == "crop":
        image = ImageOps.fit(image, size, Image.Resampling.BILINEAR)
    else:
        image = ImageOps.pad(image, size, Image.Resampling.BILINEAR, color="white")
    pixels = np.array(image).reshape(*size, -1).transpose(2, 0, 1)
    return 255 - pixels if data.invert else pixels


def read_picture(path: str | Path, data: Data) -> np.ndarray:
    """`picture_pixels` of the image file `path`, of the first frame where there are several.

    A large JPEG is decoded no larger than it has to be, and HEIC is read where pillow-heif is installed.
    Raises `UserError` where it is no picture, is damaged, or has more than `PIL.Image.MAX_IMAGE_PIXELS` pixels.
    """
    path = user_path(path)
    with _reading(path), open_regular(path) as file:
        return _used(file, path, Image.MAX_IMAGE_PIXELS, lambda image: _pixels(image, data))


def decoded_picture(content: bytes, name: str, most_pixels: int) -> Image.Image:
    """The picture that the `content` of an image file holds, decoded, the first frame where there are several.

    Raises `UserError`, which calls it `name`, as `read_picture` does, before more than `most_pixels` are decoded.
    """
    with _reading(name):
        return _used(io.BytesIO(content), name, most_pixels, lambda image: (image.load(), image)[1])


def upright(image: Image.Image) -> Image.Image:
    """The picture turned as its EXIF orientation says."""
    return _turned(image, _turn(image))


@contextmanager
def _reading(path: str | Path) -> Iterator[None]:
    """Turn what opening and decoding `path` raises into `UserError`. A string is a name, of no file."""
    try:
        yield
    except UserError:
        raise
    except UnidentifiedImageError:
        if isinstance(path, Path) and is_archive(path):
            raise UserError(f"{path} is an archive. Unpack it, and name the folder.") from None
        raise UserError(f"{path} is not a picture that Pillow can read. Replace or remove it.") from None
    except Image.DecompressionBombError as error:
        raise UserError(f"the picture {path} is too large: {error} Scale it down.") from None
    except UnknownRange as error:
        raise UserError(f"the picture {path} cannot be used: {error}.") from None
    except MemoryError:
        raise
    except OSError as error:
        raise UserError(f"the picture {path} cannot be read: {reason(error)}. Replace or remove it.") from None
    except Exception as error:  # damaged bytes make Pillow's readers raise almost anything
        raise UserError(f"the picture {path} is damaged ({error}). Replace or remove it.") from None


def thumbnails(paths: Sequence[str | Path], side: int = 112) -> torch.Tensor:
    """(N, 3, `side`, `side`) uint8: pictures as a person sees them, with white margins. Raises as `read_picture`."""
    whole = Data(name="folder", image_size=side, fit="pad")
    return torch.from_numpy(np.stack([read_picture(path, whole) for path in paths]))


def _used(file: BinaryIO, path: str | Path, most: int | None, use: Callable[[Image.Image], _UsedT]) -> _UsedT:
    """What `use` makes of the picture in `file`, of `most` pixels at most.

    Raises `UserError` where the picture is too large or needs another reader, and almost any error else.
    """

    def opened(file: BinaryIO) -> _UsedT:
        with Image.open(file, formats=formats()) as image:
            _check_size(image, path, most)
            return use(image)

    try:
        return opened(file)
    except (UserError, UnknownRange, Image.DecompressionBombError, MemoryError):
        raise
    except UnidentifiedImageError:
        found = foreign_format(file)
        if found == "HEIC" and add_heif_reader():
            file.seek(0)
            return opened(file)
        if found is not None:
            more = "pip install pillow-heif has it read" if found == "HEIC" else "Pillow from 11.3 on does"
            raise UserError(
                f"{path} is a picture in the format {found}, which this Pillow cannot read: {more}. "
                "Or save it as JPEG or PNG."
            ) from None
        kept = png_pixels(file)
        if kept is None:
            raise
    except Exception:
        kept = png_pixels(file)
        if kept is None:
            raise
    return opened(kept)


def _pixels(image: Image.Image, data: Data) -> np.ndarray:
    if data.name == "folder" and data.ink != "normalised":
        _shrink_on_load(image, data)
    return picture_pixels(image, data)


def _shrink_on_load(image: Image.Image, data: Data) -> None:
    """Have a JPEG decoded at a half, a fourth or an eighth of its size, still `_GAP` times what is asked for."""
    target = _GAP * data.image_size / (min(image.size) if data.fit == "crop" else max(image.size))
    if target < 1:
        image.draft("L" if data.channels == 1 else None, tuple(math.ceil(target * side) for side in image.size))


def _check_size(image: Image.Image, path: str | Path, most: int | None) -> None:
    if most is not None and image.width * image.height > most:
        size = f"{image.width} x {image.height} pixels"
        raise UserError(f"the picture {path} is too large: {size}, more than {most} in all. Scale it down.")


def _turn(image: Image.Image) -> Image.Transpose | None:
    try:
        return _TURNS.get(image.getexif().get(ExifTags.Base.Orientation))
    except Exception:  # damaged metadata make Pillow raise almost anything, and do not matter
        return None


def _turned(image: Image.Image, turn: Image.Transpose | None) -> Image.Image:
    return image if turn is None else image.transpose(turn)


def _on_white(image: Image.Image) -> Image.Image:
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image
