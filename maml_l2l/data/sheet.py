"""A sheet of paper that was photographed with what it lies on."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw
from scipy import ndimage

from maml_l2l.data.strokes import otsu, pen_width

_AROUND = 0.2  # share of the picture's edge that is dark at least
_AREA, _SOLID = 0.15, 0.9  # of the sheet: share of the picture, and of its convex hull
_DARK = 0.8  # share of what lies around it that is dark
_DROP = 0.85  # light just outside the sheet, by that just inside
_SHARP = 3  # that drop, by those over the same way inside the sheet and around it: shade falls off evenly
_STROKES = 1.5  # how many strokes what lies around the sheet is wide at least
_SHADE = 25  # levels of 255 by which it is lighter than ink, where the sheet is not wholly in the picture
_RIM = 3  # pixels on both sides of the sheet's edge that belong to neither


def sheet_alone(grey: np.ndarray) -> np.ndarray:
    """(H, W) uint8 with the paper of a light sheet continued over what it lies on; `grey` itself where there is none.

    A sheet is light, convex, has an edge, and bears ink. Else a drawing that fills its picture would be one.
    """
    smooth = ndimage.uniform_filter(grey.astype(np.float32), 3, mode="nearest")
    light = smooth > 255 * otsu(smooth / 255)
    edge = np.concatenate([light[0], light[-1], light[:, 0], light[:, -1]])
    if min(grey.shape) < 8 * _RIM or (~edge).mean() < _AROUND:
        return grey
    labels, count = ndimage.label(light)
    largest = labels == 1 + np.bincount(labels.ravel())[1:].argmax() if count else light
    if largest.mean() < _AREA:
        return grey
    sheet = _hull(largest)
    inside = ndimage.binary_erosion(sheet, iterations=_RIM)
    ink = inside & ~light
    if not ink.any() or not _is_sheet(smooth, light, sheet, ndimage.binary_fill_holes(largest), ink):
        return grey
    nearest = ndimage.distance_transform_edt(~(inside & light), return_distances=False, return_indices=True)
    return np.where(inside, grey, grey[tuple(nearest)])


def _is_sheet(smooth: np.ndarray, light: np.ndarray, sheet: np.ndarray, found: np.ndarray, ink: np.ndarray) -> bool:
    around = ~sheet
    if not around.any() or found.sum() < _SOLID * sheet.sum() or (~light[around]).mean() < _DARK:
        return False
    outwards, inwards = ndimage.distance_transform_edt(around), ndimage.distance_transform_edt(sheet)
    bands = [(outwards, _RIM), (inwards, _RIM), (inwards, 4 * _RIM), (outwards, 4 * _RIM)]  # each as far from the next
    levels = [smooth[(away > start) & (away <= start + _RIM)] for away, start in bands]
    if any(not len(level) for level in levels[:3]):
        return False
    outside, inside, deeper = (float(np.median(level)) for level in levels[:3])
    farther = float(np.median(levels[3])) if len(levels[3]) else outside
    slope = max(abs(deeper - inside), abs(outside - farther))
    if outside > _DROP * inside or inside - outside < _SHARP * slope:
        return False
    # A frame that is drawn is one stroke wide, and of ink.
    strokes, below = outwards.max() / pen_width(ink), np.median(smooth[outwards > _RIM])
    whole = not (sheet[0].any() or sheet[-1].any() or sheet[:, 0].any() or sheet[:, -1].any())
    other = below - np.percentile(smooth[ink], 5) > _SHADE
    return bool(strokes > _STROKES and (whole or other))


def _hull(mask: np.ndarray) -> np.ndarray:
    """The convex hull of `mask`."""
    from scipy.spatial import ConvexHull  # slow to load, and few pictures need it

    points = np.argwhere(mask & ~ndimage.binary_erosion(mask))[:, ::-1]
    corners = points[ConvexHull(points).vertices]
    image = Image.new("1", mask.shape[::-1])
    ImageDraw.Draw(image).polygon([tuple(corner) for corner in corners.tolist()], fill=1)
    return np.asarray(image)
