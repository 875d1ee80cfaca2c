"""What is wrong with a drawing, by what the network sees of it."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

_MOSTLY = 0.85  # share of the ink's box
_EDGE, _LINED, _WITHIN, _INKED = 0.2, 0.9, 0.6, 0.08  # frames: shares of the extent, a side, the box, its middle
_APART, _SMALLER, _LARGE = 0.27, 0.7, 0.25  # gap, size by the larger one's, size: the last by that of everything


def drawing_problem(pixels: np.ndarray) -> str | None:
    """What is wrong with a drawing of (H, W) uint8, ink = 255 and paper = 0, in the words of a warning; None: nothing.

    There is no ink, nearly all of it is ink, a frame is around it, or it holds signs far apart, two of which are large
    and of similar size.
    """
    ink = pixels > 80
    if not ink.any():
        return "shows no ink"
    rows, columns = (np.flatnonzero(ink.any(axis)) for axis in (1, 0))
    ink = ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    extent = max(ink.shape)
    if min(ink.shape) > 0.3 * extent and ink.mean() > _MOSTLY:
        return "is nearly all ink"
    if _has_frame(ink):
        return "has a frame around it"
    gap = _APART * extent
    near = ndimage.distance_transform_edt(~np.pad(ink, int(gap))) <= gap / 2
    signs = ndimage.find_objects(ndimage.label(near, np.ones((3, 3)))[0] * np.pad(ink, int(gap)))
    sizes = sorted((max(side.stop - side.start for side in sign) for sign in signs), reverse=True)
    if len(sizes) > 1 and sizes[1] >= max(_SMALLER * sizes[0], _LARGE * extent):
        return "holds two separate signs or more"
    return None


def _has_frame(ink: np.ndarray) -> bool:
    """Whether lines along all four sides of (H, W) bool, its ink's box, enclose paper with more ink in its middle."""
    edge = int(_EDGE * max(ink.shape))
    sides = ink[:edge].any(0), ink[-edge:].any(0), ink[:, :edge].any(1), ink[:, -edge:].any(1)
    if min(side.mean() for side in sides) < _LINED:
        return False
    regions = ndimage.label(~np.pad(ink, 1))[0]
    for number, box in enumerate(ndimage.find_objects(regions), start=1):
        height, width = (side.stop - side.start for side in box)
        outside = box[0].start == 0
        if not outside and height >= _WITHIN * ink.shape[0] and width >= _WITHIN * ink.shape[1]:
            top, left = int(_EDGE * height), int(_EDGE * width)
            other = regions[box][top : height - top, left : width - left] != number
            return bool(other.mean() > _INKED)
    return False
