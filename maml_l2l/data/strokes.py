"""What is ink, and how wide its strokes are."""

from __future__ import annotations

import math

import numpy as np


def pen_width(mask: np.ndarray) -> float:
    """The mean width of the strokes in pixels: twice the area by the perimeter, which is Crofton's of 4 directions."""
    inked = np.pad(mask, 1)
    straight = np.count_nonzero(inked[1:] != inked[:-1]) + np.count_nonzero(inked[:, 1:] != inked[:, :-1])
    slant = np.count_nonzero(inked[1:, 1:] != inked[:-1, :-1]) + np.count_nonzero(inked[1:, :-1] != inked[:-1, 1:])
    return 2 * np.count_nonzero(mask) / (math.pi / 8 * max(straight + slant / math.sqrt(2), 1))


def otsu(values: np.ndarray) -> float:
    """The threshold between two kinds of values from 0 to 1 that leaves least variance within them (Otsu, 1979)."""
    counts = np.bincount((255 * values.clip(0, 1)).astype(np.uint8).ravel(), minlength=256).astype(float)
    weight, total = counts.cumsum(), (counts * np.arange(256)).cumsum()
    inside = (weight > 0) & (weight < weight[-1])
    between = np.zeros(256)
    between[inside] = (total * weight[-1] - total[-1] * weight)[inside] ** 2 / (weight * (weight[-1] - weight))[inside]
    return (np.flatnonzero(between == between.max()).mean() + 0.5) / 255
