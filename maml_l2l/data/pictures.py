"""From one picture, as an image file holds it, to the pixels that the network sees."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError

from maml_l2l.config import Data
from maml_l2l.data.ink import ink_pixels
from maml_l2l.data.normalised_ink import normalised_ink
from maml_l2l.system.errors import UserError
from maml_l2l.system.files import open_regular, reason

# All that Pillow reads but EPS, which it hands to Ghostscript, an interpreter of programs.
Image.init()
_FORMATS = sorted(set(Image.OPEN) - {"EPS"})


def picture_pixels(image: Image.Image, data: Data) -> np.ndarray:
    """Return a picture as (C, H, W) uint8, as the data set that `data` describes holds it.

    It is turned as its EXIF orientation says. With `data.ink: normalised` it then goes the way of `normalised_ink`.
    Else it lies on white where it is transparent. For omniglot and glyphs it goes the way of `ink_pixels`. For a folder
    it becomes grey or RGB (`data.channels`), square (`data.fit`) and `data.image_size` pixels wide, by antialiased
    bilinear resizing, and untouched where it has that size already; `data.invert` comes last.
    Raises `ValueError` where its numbers have no known range.
    """
    image = ImageOps.exif_transpose(image)
    if data.ink == "normalised":
        return normalised_ink(image)[None]
    image = _on_white(image)
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

    Raises `UserError` where it is no picture, is damaged, or has more than `PIL.Image.MAX_IMAGE_PIXELS` pixels.
    """
    with _reading(path), open_regular(path) as file, Image.open(file, formats=_FORMATS) as image:
        _check_size(image, path, Image.MAX_IMAGE_PIXELS)
        return picture_pixels(image, data)


def decoded_picture(content: bytes, name: str, most_pixels: int) -> Image.Image:
    """The picture that an image file's `content` is, decoded, the first frame where there are several.

    Raises `UserError`, which calls it `name`, as `read_picture` does, before more than `most_pixels` are decoded.
    """
    with _reading(name), Image.open(io.BytesIO(content), formats=_FORMATS) as image:
        _check_size(image, name, most_pixels)
        image.load()
        return image


@contextmanager
def _reading(path: str | Path) -> Iterator[None]:
    """Turn what opening and decoding `path` raises into `UserError`."""
    try:
        yield
    except UserError:
        raise
    except UnidentifiedImageError:
        raise UserError(f"{path} is not a picture that Pillow can read. Replace or remove it.") from None
    except Image.DecompressionBombError as error:
        raise UserError(f"the picture {path} is too large: {error} Scale it down.") from None
    except OSError as error:
        raise UserError(f"the picture {path} cannot be read: {reason(error)}. Replace or remove it.") from None
    except Exception as error:  # damaged bytes make Pillow's readers raise almost anything
        raise UserError(f"the picture {path} is damaged ({error}). Replace or remove it.") from None


def thumbnails(paths: Sequence[str | Path], side: int = 112) -> torch.Tensor:
    """(N, 3, `side`, `side`) uint8: pictures as a person sees them, with white margins. Raises as `read_picture`."""
    whole = Data(name="folder", image_size=side, fit="pad")
    return torch.from_numpy(np.stack([read_picture(path, whole) for path in paths]))


def _check_size(image: Image.Image, path: str | Path, most: int | None) -> None:
    if most is not None and image.width * image.height > most:
        size = f"{image.width} x {image.height} pixels"
        raise UserError(f"the picture {path} is too large: {size}, more than {most} in all. Scale it down.")


def _on_white(image: Image.Image) -> Image.Image:
    if image.mode == "F":
        raise ValueError("its numbers are floats of no known range: save it with 8 or 16 bits")
    if image.mode.startswith("I"):  # 16 bits, of which `convert` would keep the lower 8
        return Image.fromarray((np.asarray(image).clip(0, 65535) // 257).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image
