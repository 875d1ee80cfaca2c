"""Pictures of more than 8 bits, and of modes that Pillow does not convert, as pictures of 8 bits."""

from __future__ import annotations

import numpy as np
from PIL import Image

_BITS, _WHITE_IS_ZERO, _SIGNED = 258, 262, 339  # tags of TIFF 6.0
_OF_16_BITS = {"PNG", "PPM"}  # formats of which Pillow scales what has more than 8 bits to 16, in mode "I"


class UnknownRange(ValueError):
    """The numbers of a picture have no range that says which is white."""


def eight_bits(image: Image.Image, stretch: bool = False) -> Image.Image:
    """`image` in a mode that Pillow converts to "L", "RGB" and "RGBA", with the same brightness and transparency.

    Integers are read by what the file says of them; where it says nothing, as 8 bits where all are at most 255, else as
    16 bits. stretch: black and white are the least and the largest number instead.
    Raises `UnknownRange` for floats and for other integers, unless `stretch`.
    """
    if image.mode in ("La", "LAB"):
        return image.convert("LA" if image.mode == "La" else "RGB")
    if image.mode[0] not in "IF":
        return _with_transparency_of_8_bits(image)
    transparent = image.info.get("transparency")
    black, white = (None, None) if stretch else _range(image)
    values = np.nan_to_num(np.asarray(image, np.float32), posinf=0, neginf=0)
    opaque = values != transparent if isinstance(transparent, int) else None
    if black is None or white is None:
        seen = values if opaque is None or not opaque.any() else values[opaque]
        black, white = float(seen.min()), float(seen.max())
    span = white - black or 1
    grey = Image.fromarray(np.rint(255 * ((values - black) / span).clip(0, 1)).astype(np.uint8))
    if opaque is not None:
        grey.putalpha(Image.fromarray(opaque))
    return grey


def _range(image: Image.Image) -> tuple[float, float]:
    """The numbers of black and of white in a picture of mode "I...", "F"."""
    if image.mode == "F":
        raise UnknownRange("its numbers are floats of no known range. Save it with 8 or 16 bits")
    tags = getattr(image, "tag_v2", {})
    bits = tags.get(_BITS, (16,))[0]
    signed = tags.get(_SIGNED, (1,))[0] != 1
    if (image.mode != "I" and not signed) or image.format in _OF_16_BITS:
        white = 2**bits - 1
    else:
        low, high = image.getextrema()
        if low < 0 or high > 65535:
            raise UnknownRange(f"its numbers are from {low} to {high}, of no known range. Save it with 8 or 16 bits")
        white = 255 if high <= 255 else 65535
    return (white, 0) if tags.get(_WHITE_IS_ZERO) == 0 else (0, white)


def _with_transparency_of_8_bits(image: Image.Image) -> Image.Image:
    """Of 16 bits per colour Pillow keeps the upper 8, but not so of the colour that is transparent."""
    colour = image.info.get("transparency")
    tile = getattr(image, "tile", None)
    if isinstance(colour, tuple) and tile and tile[0][3] == "RGB;16B":
        image = image.copy()
        image.info["transparency"] = tuple(value >> 8 for value in colour)
    return image
