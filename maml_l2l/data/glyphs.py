"""The embedded data set: characters of invented alphabets, drawn on the user's machine without any download.

It has the size and the look of Omniglot (Lake, Salakhutdinov and Tenenbaum, 2015): 1,623 characters, each
drawn by 20 simulated writers. As in that paper's generative model, an alphabet owns a few stroke shapes, a
character joins some, and a writer bends, moves and scales them. Points are (x, y), y down, in canvas pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from maml_l2l.data.ink import SIZE
from maml_l2l.data.labelled_images import LabelledImages, cached
from maml_l2l.data.normalised_ink import READERS, ink_version
from maml_l2l.data.processes import mapped
from maml_l2l.system.errors import UserError
from maml_l2l.system.messages import progress_bar

DRAWING_VERSION = 1  # raise it with every change that alters a pixel: it is part of the cache's key
ALPHABETS, WRITERS, CANVAS = 50, 20, 105  # Omniglot's; the canvas in pixels

_KINDS = ("line", "corner", "zigzag", "arc", "hook", "wave", "loop")
_SAMPLES = 48  # points of the pen's path on each piece of a stroke: at most about 1.5 pixels apart
_PEN = np.stack(np.meshgrid(np.arange(-2, 4), np.arange(-2, 4)), -1).reshape(-1, 2)  # pixels it can reach
_PATH = (95.0, 300.0)  # pixels the pen travels in a character: a bare line or a scrawl would be ambiguous
_CELL = 4.0  # pixels, about a pen's width
_OVERDRAWN = 0.95  # cells of paper reached by each _CELL of travel; below it strokes run over each other
_TOO_ALIKE = 0.8  # cosine of two blurred plans; above it a person takes one character for the other
_TRIES = 60  # then the last plan is taken as it is


@dataclass(frozen=True)
class Stroke:
    """One movement of the pen: the points (K, 2) it passes; at which of them, (K,) bool, it turns sharply."""

    points: np.ndarray
    sharp: np.ndarray


@dataclass(frozen=True)
class Style:
    """What the characters of one alphabet share."""

    shapes: list[Stroke]
    stroke_odds: np.ndarray  # (4,) probabilities of 1, 2, 3 and 4 strokes
    detached: float  # share of strokes that touch no other
    extent: np.ndarray  # (2,) typical width and height of a character, pixels


@dataclass(frozen=True)
class Writers:
    """The habits of the 20 writers of one alphabet: arrays over writers."""

    linear: np.ndarray  # (20, 2, 2) slant, tilt and scale
    shift: np.ndarray  # (20, 2) pixels
    untidy: np.ndarray  # (20,) factor on all jitter
    angular: np.ndarray  # (20,) 0 draws curves round, 1 draws them as polygons
    pen: np.ndarray  # (20,) radius of the pen, pixels


def load_glyphs(root: Path, alphabets: int = 50, seed: int = 0, ink: str = "finn") -> LabelledImages:
    """Return the first `alphabets` invented alphabets: pixels (N, 1, 28, 28) uint8, ink = 255, paper = 0.

    Each character has 20 images, in writer order; `alphabet_sizes` counts the characters. Alphabet i is a
    pure function of `seed` and i. Drawn once, then kept in the folder `root`/glyphs. ink: how drawings are read, as
    `data.ink` says.
    """
    if not 1 <= alphabets <= ALPHABETS:
        raise UserError(
            f"glyphs: expected a number of alphabets from 1 to {ALPHABETS}, found {alphabets}. "
            "Set data.alphabets to a number in that range."
        )
    key = f"glyphs, drawing version {DRAWING_VERSION}, {alphabets} alphabets, seed {seed}{ink_version(ink)}"
    name = f"glyphs-{alphabets}-{seed}{'' if ink == 'finn' else f'-{ink}'}.pt"
    return cached(root / "glyphs" / name, key, lambda: _draw_all(alphabets, seed, ink))


def alphabet_sizes(alphabets: int) -> list[int]:
    """Number of characters of each of the first `alphabets` alphabets; all 50 hold 1,623, as in Omniglot."""
    return [33 if index <= 23 else 32 for index in range(1, alphabets + 1)]


def _draw_all(alphabets: int, seed: int, ink: str) -> LabelledImages:
    sizes = list(enumerate(alphabet_sizes(alphabets), start=1))
    names = [f"Alphabet_{index:02d}/character{number:02d}" for index, size in sizes for number in range(1, size + 1)]
    drawn = mapped(partial(_draw_alphabet, seed=seed, ink=ink), sizes, at_once=2)
    pixels = list(progress_bar(drawn, "drawing glyphs", total=alphabets, unit="alphabet"))
    stacked = torch.from_numpy(np.concatenate(pixels)).reshape(-1, 1, SIZE, SIZE)
    return LabelledImages(stacked, torch.arange(len(names)).repeat_interleave(WRITERS), tuple(names))


def _draw_alphabet(index_and_size: tuple[int, int], seed: int, ink: str) -> np.ndarray:
    """Return (size * 20, 28, 28) uint8."""
    index, size = index_and_size
    rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, index])))
    style, writers = _draw_style(rng), _draw_writers(rng)
    looks, drawings = [], []
    for _ in range(size):
        for _ in range(_TRIES):
            plan = _plan_character(style, rng)
            legible, look = _look(plan)
            if legible and all(look @ other < _TOO_ALIKE for other in looks):
                break
        looks.append(look)
        drawings += [READERS[ink](Image.fromarray(~drawing)) for drawing in _write(plan, writers, rng)]
    return np.stack(drawings)


def _draw_style(rng: np.random.Generator) -> Style:
    kinds = rng.choice(len(_KINDS), size=9, p=rng.dirichlet(np.full(len(_KINDS), 1.5)))
    shapes = [_stroke_shape(_KINDS[kind], rng) for kind in kinds]
    odds = rng.dirichlet([2.5, 4.0, 3.5, 2.0])
    return Style(shapes, odds, detached=rng.uniform(0.0, 0.3), extent=rng.normal([52.0, 55.0], 4.0))


def _stroke_shape(kind: str, rng: np.random.Generator) -> Stroke:
    """Return a stroke of the given kind, centred, its longer side 1, made by walking and turning."""
    side = rng.choice([-1.0, 1.0])
    turns, lengths = [], np.ones(1)  # of a line
    if kind == "corner":
        turns, lengths = [rng.uniform(60, 135)], rng.uniform(0.5, 1.0, 2)
    elif kind == "zigzag":
        turn = rng.uniform(80, 140)
        turns, lengths = [turn, -turn, turn][: rng.integers(2, 4)], rng.uniform(0.6, 1.0, 4)
    elif kind == "arc":
        turns = [rng.uniform(25, 60)] * 4
    elif kind == "hook":
        turns, lengths = [0.0, 50.0, 60.0, 60.0], np.array([0.6, 0.6, 0.3, 0.3, 0.3])
    elif kind == "wave":
        turn = rng.uniform(45, 70)
        turns = [turn, turn, -turn, -turn, -turn, turn][: rng.integers(5, 7)]
    elif kind == "loop":
        turns = [rng.uniform(50, 56)] * 7
    start = rng.choice([0.0, 45.0, 90.0, 135.0, 180.0]) + rng.normal(0.0, 8.0)
    heading = np.deg2rad(start + side * np.cumsum([0.0, *turns]))
    steps = np.resize(lengths, len(heading)) * np.stack([np.cos(heading), np.sin(heading)])
    points = np.concatenate([np.zeros((1, 2)), np.cumsum(steps.T, axis=0)])
    low, high = points.min(axis=0), points.max(axis=0)
    points = (points - (low + high) / 2) / (high - low).max()
    return Stroke(points, sharp=np.full(len(points), kind in ("corner", "zigzag")))


def _plan_character(style: Style, rng: np.random.Generator) -> list[Stroke]:
    """Return a new character's strokes about its centre; each joins an earlier one or stands beside it."""
    plan: list[Stroke] = []
    for number in range(rng.choice(4, p=style.stroke_odds) + 1):
        shape = style.shapes[rng.integers(len(style.shapes))]
        scale = rng.uniform(0.8, 1.0) if number == 0 else rng.uniform(0.5, 0.9)
        points = shape.points * scale * rng.uniform(0.75, 1.0, 2)
        if plan:
            host = plan[rng.integers(len(plan))].points
            if rng.random() < style.detached:
                angle = rng.uniform(0.0, 2 * np.pi)
                points = points + host.mean(axis=0) + 0.5 * np.array([np.cos(angle), np.sin(angle)])
            else:
                points = points + _spot(host, rng) - _spot(points, rng)
        plan.append(Stroke(points, shape.sharp))
    everything = np.concatenate([stroke.points for stroke in plan])
    low, high = everything.min(axis=0), everything.max(axis=0)
    size = 0.5 * (high - low).max() + 0.25 * (high - low).sum()  # long ones may outreach round ones
    scale = style.extent * rng.normal(1.0, 0.1, 2) / size
    return [Stroke((stroke.points - (low + high) / 2) * scale, stroke.sharp) for stroke in plan]


def _spot(points: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return the start, the end or the middle of a stroke: where another one touches it."""
    middle = (points[(len(points) - 1) // 2] + points[len(points) // 2]) / 2
    return (points[0], points[-1], middle)[rng.integers(3)]


def _look(plan: list[Stroke]) -> tuple[bool, np.ndarray]:
    """Return whether a plan is legible, and its blurred picture, (784,) of length 1, to compare plans by."""
    paths = [_curves(stroke, np.zeros(1))[0] @ stroke.points for stroke in plan]
    travel = sum(np.linalg.norm(np.diff(path, axis=0), axis=1).sum() for path in paths)
    x, y = np.clip(np.concatenate(paths) / _CELL + 14, 3, 24).astype(int).T
    picture = np.zeros((28, 28))
    picture[y, x] = 1.0
    legible = _PATH[0] < travel < _PATH[1] and picture.sum() * _CELL / travel > _OVERDRAWN
    for axis in (0, 1, 0, 1):
        picture = picture + np.roll(picture, 1, axis) + np.roll(picture, -1, axis)
    return legible, picture.ravel() / np.linalg.norm(picture)


def _curves(stroke: Stroke, angular: np.ndarray) -> np.ndarray:
    """Return (W, S, K) weights: times a stroke's K points they give the S points of W writers' pen paths.

    Between two points runs a cubic Hermite piece (Catmull-Rom tangents, none at sharp points), mixed with a
    straight one in the share `angular` (W,).
    """
    unit = np.eye(len(stroke.points))
    start, end = unit[:-1, None], unit[1:, None]
    tangents = np.gradient(unit, axis=0) * ~stroke.sharp[:, None]
    t = np.linspace(0.0, 1.0, _SAMPLES)[:, None]
    straight = (1 - t) * start + t * end
    bent = (1 + 2 * t) * (1 - t) ** 2 * start + t**2 * (3 - 2 * t) * end
    bent += t * (1 - t) ** 2 * tangents[:-1, None] - t**2 * (1 - t) * tangents[1:, None]
    mixed = bent + angular[:, None, None, None] * (straight - bent)
    return mixed.reshape(len(angular), -1, len(unit))


def _draw_writers(rng: np.random.Generator) -> Writers:
    return Writers(
        linear=_linear(rng, tilt=0.06, slant=0.14, scale=0.1),
        shift=rng.normal(0.0, 3.9, (WRITERS, 2)),
        untidy=rng.lognormal(0.0, 0.3, WRITERS),
        angular=rng.beta(1.0, 2.0, WRITERS),
        pen=rng.normal(2.45, 0.12, WRITERS).clip(2.1, 2.8),
    )


def _linear(rng: np.random.Generator, tilt: float, slant: float, scale: float) -> np.ndarray:
    """Return (20, 2, 2) random maps near the identity, of these standard deviations (radians, shares)."""
    angle = rng.normal(0.0, tilt, WRITERS)
    turn = np.stack([np.cos(angle), -np.sin(angle), np.sin(angle), np.cos(angle)], axis=1).reshape(-1, 2, 2)
    lean = np.eye(2) + np.outer(rng.normal(0.0, slant, WRITERS), [0, 1, 0, 0]).reshape(-1, 2, 2)
    return turn @ lean * rng.lognormal(0.0, scale, (WRITERS, 2, 1))


def _write(plan: list[Stroke], writers: Writers, rng: np.random.Generator) -> np.ndarray:
    """Return one character drawn by every writer, (20, 105, 105) bool, true where there is ink."""
    whole = writers.linear @ _linear(rng, tilt=0.06, slant=0.06, scale=0.08)
    place = CANVAS / 2 + writers.shift + rng.normal(0.0, 3.9, (WRITERS, 2))
    paths = []
    for stroke in plan:
        centre = stroke.points.mean(axis=0)
        own = _linear(rng, tilt=0.07, slant=0.06, scale=0.11)
        reach = min(np.ptp(stroke.points, axis=0).max() / 35.0, 1.0)  # small strokes must stay readable
        jitter = (writers.untidy * reach)[:, None, None]
        points = (stroke.points - centre) @ own + centre + jitter * rng.normal(0.0, 2.0, (WRITERS, 1, 2))
        points = points + jitter * rng.normal(0.0, 1.8, (WRITERS, *stroke.points.shape))
        points = points @ whole.transpose(0, 2, 1) + place[:, None]
        paths.append(_curves(stroke, writers.angular) @ points)
    return _stamp(np.concatenate(paths, axis=1), writers.pen)


def _stamp(paths: np.ndarray, radius: np.ndarray) -> np.ndarray:
    """Return (W, 105, 105) bool, true within a round pen's radius (W,) of its path (W, S, 2)."""
    paths = paths.clip(3.0, CANVAS - 5.0).astype(np.float32)  # a pen stops at the edge of the paper
    corner = paths.astype(np.int32)
    x, y = np.moveaxis(paths - corner, 2, 0)
    pixel = (np.arange(len(paths))[:, None] * CANVAS + corner[:, :, 1]) * CANVAS + corner[:, :, 0]
    reach = radius.astype(np.float32)[:, None] ** 2  # squared
    ink = np.zeros(len(paths) * CANVAS * CANVAS, dtype=bool)
    for across, down in _PEN:
        touched = (x - across) ** 2 + (y - down) ** 2 <= reach
        ink[pixel[touched] + (down * CANVAS + across)] = True
    return ink.reshape(-1, CANVAS, CANVAS)
