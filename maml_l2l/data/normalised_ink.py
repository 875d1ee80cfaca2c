"""From any drawing, scanned, photographed or drawn on a screen, to ink of one size and one pen width."""

from __future__ import annotations

import functools
import math

import numpy as np
from PIL import Image, ImageOps
from scipy import ndimage

from maml_l2l.data.depth import eight_bits
from maml_l2l.data.ink import SIZE, ink_pixels
from maml_l2l.data.sheet import sheet_alone
from maml_l2l.data.strokes import otsu, pen_width

NORMALISATION_VERSION = 3  # raise it with every change that alters a pixel: it is part of the caches' keys

EXTENT, PEN = 20, 2.0  # of the drawing's longer side and of the strokes in the pixels of (SIZE, SIZE)
_FINE = 4  # the work goes on in pixels so many times finer
_READ = 256  # larger pictures are first reduced to so many pixels a side, at most
_CELLS = 32  # a side, in which paper and light are seen
_FAINTEST = 0.1  # share of its paper's light that ink takes away at least
_DIM = 20  # paper of less light than this is taken for this dark
_DEEPEST_SHADE = 0.6  # paper that is darker than this share of the brightest is taken for ink
_FITS = 6  # of the surface to the light
_NOISES = 6  # deviations of the noise above which ink begins


def normalised_ink(image: Image.Image) -> np.ndarray:
    """Return a drawing as (28, 28) uint8, ink = 255 and paper = 0, antialiased.

    `image` has any size and mode. Ink is what differs from the paper around it: dark on light or light on dark,
    whichever there is less of, also under shade; specks smaller than the pen are no ink. Transparent paper is white, or
    black where all ink is white. The drawing is centred, its longer side is `EXTENT` pixels, its strokes are `PEN`.
    """
    mask = square(ink_mask(image))
    pixels = one_pen(mask) if mask.any() else mask
    return np.rint(255 * pixels.reshape(SIZE, _FINE, SIZE, _FINE).mean((1, 3))).astype(np.uint8)


def ink_mask(image: Image.Image) -> np.ndarray:
    """(H, W) bool: where there is ink, in pixels of `image`, or larger ones where it is large."""
    image = eight_bits(image, stretch=True)
    if not image.has_transparency_data:
        return _opaque_ink(image)
    image = image.convert("RGBA")
    alpha = image.getchannel("A")
    if alpha.getextrema()[0] == 255:
        return _opaque_ink(image)
    masks = (_opaque_ink(_on_paper(image, alpha.getbbox(), colour)) for colour in ("white", "black"))
    first = next(masks)
    return first if first.any() else next(masks)


def _on_paper(image: Image.Image, inked: tuple[int, int, int, int] | None, colour: str) -> Image.Image:
    """ "L": an "RGBA" picture on opaque paper. inked: the box of all that is not wholly transparent."""
    paper = Image.new("L", image.size, colour)
    if inked is not None:
        part = image.crop(inked)
        paper.paste(Image.alpha_composite(Image.new("RGBA", part.size, colour), part).convert("L"), inked)
    return paper


def square(mask: np.ndarray) -> np.ndarray:
    """Crop to the ink and centre it, (112, 112) bool; with the right pen its longer side is 80."""
    width = SIZE * _FINE
    rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
    if not len(rows):
        return np.zeros((width, width), bool)
    crop = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    height, length = crop.shape
    pen, extent = pen_width(crop), max(crop.shape)
    # Of the middle of the strokes, so that the pen does not matter; of blots, which have none, of the edge.
    side = max(extent - pen, 0.8 * extent) * SIZE / (EXTENT - PEN)  # of the square, in pixels of the mask
    pad = math.ceil((side - min(crop.shape)) / 2) + 1
    image = Image.fromarray(np.pad(crop, pad).astype(np.uint8) * 255)
    left, top = (length - side) / 2 + pad, (height - side) / 2 + pad
    enlarged = side < width
    how = Image.Resampling.BILINEAR if enlarged else Image.Resampling.BOX
    cover = np.asarray(image.resize((width, width), how, box=(left, top, left + side, top + side)))
    # A stroke of less than a pixel covers none of them by half.
    half = 0.35 if enlarged else 0.4 * min(pen * width / side, 1)
    return cover > 255 * half


def one_pen(mask: np.ndarray) -> np.ndarray:
    """(112, 112) from 0 to 1: the same drawing with strokes of `PEN` * `_FINE` pixels."""
    grow = (_FINE * PEN - pen_width(mask)) / 2
    # `inside`: how far the middle of a pixel is from the edge of the ink, negative outside.
    if grow > 0:
        inside = 0.5 - ndimage.distance_transform_edt(~mask)
    else:
        inside = ndimage.distance_transform_edt(mask) - 0.5
        grow = max(grow, 0.5 - inside.max())  # of blots and thin lines together something is left
    return (inside + grow + 0.5).clip(0, 1)


READERS = {"finn": ink_pixels, "normalised": normalised_ink}  # by `data.ink`


def ink_version(ink: str) -> str:
    """What the key of a cache of drawings says of how they were read."""
    return "" if ink == "finn" else f", {ink} ink, version {NORMALISATION_VERSION}"


def _opaque_ink(image: Image.Image) -> np.ndarray:
    factor = -(-max(image.size) // _READ)
    mask = _grey_ink(image.convert("L").reduce(factor) if factor > 1 else image.convert("L"))
    rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
    if factor == 1 or not len(rows):
        return mask
    top, bottom, left, right = (factor * edge for edge in (rows[0], rows[-1] + 1, columns[0], columns[-1] + 1))
    extent = max(bottom - top, right - left)
    if extent > factor * EXTENT * _FINE or 3 * extent > max(image.size):
        return mask
    # A small drawing on a large picture is looked at again from nearby.
    box = (left - extent // 2, top - extent // 2, right + extent // 2, bottom + extent // 2)
    nearby = image.crop((max(box[0], 0), max(box[1], 0), min(box[2], image.width), min(box[3], image.height)))
    closer = _opaque_ink(nearby)
    return closer if closer.any() else mask


def _grey_ink(grey: Image.Image) -> np.ndarray:
    grey = Image.fromarray(sheet_alone(np.asarray(grey)))
    cells = np.asarray(grey.resize([min(_CELLS, side) for side in grey.size], Image.Resampling.BOX), np.float32)
    if _is_light_on_dark(cells):
        grey, cells = ImageOps.invert(grey), 255 - cells
    paper = np.asarray(Image.fromarray(_paper(cells)).resize(grey.size, Image.Resampling.BILINEAR), np.float32)
    missing = (paper - np.asarray(grey)) / np.maximum(paper, _DIM)  # the share of its paper's light
    some = missing[::4]
    noise = np.median(np.abs(np.diff(some, axis=1))) / 0.954 if some.shape[1] > 1 else 0  # 0.954: of normal deviates
    sure = max(otsu(missing), _FAINTEST, np.median(some) + _NOISES * noise)
    return _without_specks(missing > 0.6 * sure, missing > sure)


def _is_light_on_dark(cells: np.ndarray) -> bool:
    """Whether the few that differ most from what is around them are the light ones: the third moment's sign."""
    rest = cells - ndimage.uniform_filter(cells, _CELLS // 2 + 1, mode="nearest")
    return ((rest - rest.mean()) ** 3).sum() > 0


def _paper(cells: np.ndarray) -> np.ndarray:
    """uint8: the picture without what is darker than its surroundings and narrower than a third of it.

    Shade that falls along a surface is taken out first. As that would dig a valley beside the edge of a shadow, which
    then would be filled, and without it the darkest corner is filled, the darker answer counts.
    """
    light = _light(cells)
    paper = np.minimum(_closed(cells), light * _closed(cells / light))
    return np.rint(paper).clip(1, 255).astype(np.uint8)


def _closed(cells: np.ndarray) -> np.ndarray:
    window = max(cells.shape) // 3 | 1
    closed = ndimage.grey_closing(cells, window)
    closed = np.maximum(closed, _DEEPEST_SHADE * closed.max())
    return ndimage.uniform_filter(closed, window // 3 | 1, mode="nearest")


def _light(cells: np.ndarray) -> np.ndarray:
    """A quadratic surface over most of `cells` from above, which shade falls along and drawings do not.

    Least squares in which what lies below counts little (Newey and Powell, 1987: expectiles).
    """
    terms = _surface_terms(cells.shape)
    values, brightest = cells.ravel(), cells.max()
    above = np.ones(cells.size, bool)
    for _ in range(_FITS):
        weighted = terms * np.where(above, np.float32(1), np.float32(0.01))
        surface = np.linalg.solve(weighted @ terms.T + 1e-3 * np.eye(6, dtype=np.float32), weighted @ values) @ terms
        before, above = above, values > surface - 0.02 * brightest
        if (above == before).all():
            break
    return surface.reshape(cells.shape).clip(0.1 * brightest + 1, None)


@functools.cache
def _surface_terms(shape: tuple[int, int]) -> np.ndarray:
    """(6, height * width): 1, x, y, x^2, xy and y^2 of the cells of a picture."""
    y, x = (np.linspace(-1, 1, side, dtype=np.float32) for side in shape)
    y, x = (axis.ravel() for axis in np.meshgrid(y, x, indexing="ij"))
    return np.stack([np.ones_like(x), x, y, x * x, x * y, y * y])


def _without_specks(mask: np.ndarray, sure: np.ndarray) -> np.ndarray:
    """`mask` without pieces that hold no `sure` ink, and without those too small for a dot of the pen."""
    labels, count = ndimage.label(mask, np.ones((3, 3)))
    areas = np.bincount(labels.ravel(), minlength=count + 1)
    areas[np.bincount(labels[sure], minlength=count + 1) == 0] = areas[0] = 0
    large = areas > 0.1 * areas.max()
    if large.sum() == count:
        return mask
    pen = pen_width(large[labels])
    return (large | (areas > 0.4 * pen**2))[labels]
