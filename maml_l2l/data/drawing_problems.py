"""What is wrong with a drawing, by what the network sees of it."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

_MOSTLY = 0.85  # share of the ink's box
_APART, _SMALLER, _LARGE = 0.27, 0.7, 0.25  # gap, size by the larger one's, size: the last by that of everything


def drawing_problem(pixels: np.ndarray) -> str | None:
    """What is wrong with a drawing of (H, W) uint8, ink = 255 and paper = 0, in the words of a warning; None: nothing.

    There is no ink, nearly all of it is ink, or it holds signs far apart, two of which are large and of similar size.
    """
    ink = pixels > 80
    if not ink.any():
        return "shows no ink"
    rows, columns = (np.flatnonzero(ink.any(axis)) for axis in (1, 0))
    ink = ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    extent = max(ink.shape)
    if min(ink.shape) > 0.3 * extent and ink.mean() > _MOSTLY:
        return "is nearly all ink"
    gap = _APART * extent
    near = ndimage.distance_transform_edt(~np.pad(ink, int(gap))) <= gap / 2
    signs = ndimage.find_objects(ndimage.label(near, np.ones((3, 3)))[0] * np.pad(ink, int(gap)))
    sizes = sorted((max(side.stop - side.start for side in sign) for sign in signs), reverse=True)
    if len(sizes) > 1 and sizes[1] >= max(_SMALLER * sizes[0], _LARGE * extent):
        return "holds two separate signs or more"
    return None
