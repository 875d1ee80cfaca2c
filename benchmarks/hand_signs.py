"""Twelve signs that anybody tells apart, drawn by a program as people draw and photograph them."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

_POINTS = 48  # of each stroke as the hand moves


def arc(x: float, y: float, radius: float, start: float, stop: float) -> np.ndarray:
    """Points (x, y) of a circle's part, from one angle to another, in degrees."""
    angle = np.deg2rad(np.linspace(start, stop, _POINTS))
    return np.stack([x + radius * np.cos(angle), y + radius * np.sin(angle)], 1)


def _spiral() -> np.ndarray:
    turn = np.linspace(0.1, 1, _POINTS)
    return arc(0, 0, 1, 0, 900) * turn[:, None]


def _heart() -> np.ndarray:
    t = np.linspace(0, 2 * np.pi, _POINTS)
    x, y = 16 * np.sin(t) ** 3, 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    return np.stack([x, -y], 1) / 16


# Each sign is a list of strokes: points (x, y) from -1 to 1, y down.
SIGNS: dict[str, list] = {
    "arrow": [[(-1, 0), (1, 0)], [(0.4, -0.6), (1, 0), (0.4, 0.6)]],
    "circle": [arc(0, 0, 1, -90, 275)],
    "cross": [[(-0.9, -0.9), (0.9, 0.9)], [(0.9, -0.9), (-0.9, 0.9)]],
    "face": [
        arc(0, 0, 1, -90, 272),
        [(-0.38, -0.35), (-0.37, -0.3)],
        [(0.38, -0.35), (0.37, -0.3)],
        arc(0, 0.05, 0.5, 150, 30),
    ],
    "heart": [_heart()],
    "house": [[(-0.8, 0), (-0.8, 1), (0.8, 1), (0.8, 0)], [(-1, 0.05), (0, -1), (1, 0.05)], [(-0.9, 0), (0.9, 0)]],
    "spiral": [_spiral()],
    "square": [[(-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9), (-0.9, -0.95)]],
    "star": [[(np.sin(2.4 * np.pi / 3 * k), -np.cos(2.4 * np.pi / 3 * k)) for k in range(6)]],
    "tick": [[(-1, 0.2), (-0.4, 0.9), (1, -0.9)]],
    "triangle": [[(0, -0.9), (1, 0.85), (-1, 0.85), (0.03, -0.92)]],
    "zigzag": [[(-1, 0.5), (-0.5, -0.5), (0, 0.5), (0.5, -0.5), (1, 0.5)]],
}


@dataclass(frozen=True)
class Condition:
    """How a sign comes onto a picture.

    canvas: width and height in pixels.  size: of the sign, shares of the shorter side, from and to.  pen: its width in
    pixels, from and to.  place: how far from the middle, as a share of the room there is.  turn: most degrees.
    finish: from (H, W) ink, 0 to 1, to the picture.
    """

    finish: Callable[[np.ndarray, np.random.Generator], Image.Image]
    canvas: tuple[int, int] = (400, 400)
    size: tuple[float, float] = (0.55, 0.85)
    pen: tuple[float, float] = (5, 12)
    place: float = 0.5
    turn: float = 4.0


def _grey(ink: np.ndarray, dark: float | np.ndarray = 0, light: float | np.ndarray = 255) -> Image.Image:
    return Image.fromarray(np.rint(light + (dark - light) * ink).clip(0, 255).astype(np.uint8))


def _smooth(shape: tuple[int, ...], rng: np.random.Generator, cells: int) -> np.ndarray:
    """(H, W) noise of mean 0 and deviation 1 whose patches are H / cells high."""
    coarse = Image.fromarray(rng.normal(size=(cells, cells)).astype(np.float32))
    return np.asarray(coarse.resize(shape[::-1], Image.Resampling.BICUBIC))


def _lamp(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """(H, W) light from one side, from 0.45 or so to 1."""
    angle = rng.uniform(0, 2 * np.pi)
    y, x = np.mgrid[-1 : 1 : shape[0] * 1j, -1 : 1 : shape[1] * 1j]
    fall = (np.cos(angle) * x + np.sin(angle) * y) / np.sqrt(2) * 0.5 + 0.5
    return 1 - rng.uniform(0.35, 0.6) * fall ** rng.uniform(1, 2)


def _pencil(ink: np.ndarray, rng: np.random.Generator) -> Image.Image:
    grain = (1 + 0.35 * _smooth(ink.shape, rng, ink.shape[0] // 3)).clip(0, 1.3)
    picture = _grey((ink * grain).clip(0, 1), rng.uniform(125, 165), rng.uniform(225, 250))
    return _with_noise(picture, 3, rng)


def _with_noise(picture: Image.Image, deviation: float, rng: np.random.Generator) -> Image.Image:
    values = np.asarray(picture, np.float32)
    return Image.fromarray((values + deviation * rng.normal(size=values.shape)).clip(0, 255).astype(np.uint8))


def _shaded(ink: np.ndarray, rng: np.random.Generator) -> Image.Image:
    light = _lamp(ink.shape, rng)
    grey = _with_noise(_grey(ink, light * rng.uniform(30, 80), light * rng.uniform(200, 245)), 4, rng)
    warm = [np.asarray(grey.point(lambda value, part=part: value * part)) for part in (1.0, 0.96, 0.86)]
    return Image.fromarray(np.stack(warm, -1))


def _shadow(ink: np.ndarray, rng: np.random.Generator) -> Image.Image:
    """A hand's or a phone's shadow with a soft edge across the paper."""
    edge = _lamp(ink.shape, rng)
    light = 1 - 0.45 / (1 + np.exp(-(np.median(edge) - edge) * 60))
    return _with_noise(_grey(ink, light * 50, light * 225), 3, rng)


def _noisy(ink: np.ndarray, rng: np.random.Generator) -> Image.Image:
    stored = io.BytesIO()
    _with_noise(_grey(ink, 60, 200), rng.uniform(12, 20), rng).save(stored, "JPEG", quality=40)
    return Image.open(stored)


def _blurred(ink: np.ndarray, rng: np.random.Generator) -> Image.Image:
    return _grey(ink, 40, 220).filter(ImageFilter.GaussianBlur(rng.uniform(0.008, 0.016) * ink.shape[0]))


def _chalk(ink: np.ndarray, rng: np.random.Generator) -> Image.Image:
    grain = rng.random(ink.shape) < 0.75 + 0.15 * _smooth(ink.shape, rng, 40)
    board = 55 + 6 * _smooth(ink.shape, rng, 6)  # wiped, not washed
    return _with_noise(_grey(ink * grain, rng.uniform(180, 235), board), 3, rng).filter(ImageFilter.BoxBlur(1))


def _stylus(ink: np.ndarray, rng: np.random.Generator) -> Image.Image:
    colour = [(0, 0, 0), (255, 255, 255), (200, 30, 30), (30, 60, 200)][rng.integers(4)]
    picture = Image.new("RGBA", ink.shape[::-1], (*colour, 0))
    picture.putalpha(Image.fromarray(np.rint(255 * ink).astype(np.uint8)))
    return picture


def _coloured(ink: np.ndarray, rng: np.random.Generator) -> Image.Image:
    """A felt pen on a sticky note."""
    pens, papers = [(30, 60, 170), (170, 30, 40), (20, 110, 50)], [(250, 235, 120), (255, 190, 200), (190, 225, 250)]
    pen, paper = pens[rng.integers(3)], papers[rng.integers(3)]
    return Image.merge("RGB", [_grey(ink, d, p) for d, p in zip(pen, paper, strict=True)])


def _black(ink: np.ndarray, rng: np.random.Generator) -> Image.Image:
    return _grey(ink)


CONDITIONS: dict[str, Condition] = {
    "felt pen": Condition(_black, (105, 105), pen=(3, 5)),
    "thin pen": Condition(_black, (1000, 1000), pen=(2, 5)),
    "marker": Condition(_black, pen=(24, 40)),
    "off-centre": Condition(_black, (800, 600), size=(0.15, 0.3), pen=(3, 6), place=1.0),
    "turned": Condition(_black, turn=15),
    "1-bit": Condition(lambda ink, rng: Image.fromarray(ink < 0.5), (105, 105), pen=(2, 4)),
    "pencil": Condition(_pencil, (600, 600), pen=(3, 6)),
    "shaded": Condition(_shaded, (800, 600), pen=(5, 12)),
    "shadow": Condition(_shadow, (800, 600), pen=(5, 12)),
    "noise": Condition(_noisy, (500, 500), pen=(5, 9)),
    "blur": Condition(_blurred, (500, 500), pen=(6, 14)),
    "chalk": Condition(_chalk, (700, 500), pen=(9, 16)),
    "stylus": Condition(_stylus, (500, 400), pen=(3, 16)),
    "sticky note": Condition(_coloured, pen=(4, 10)),
}


def draw_sign(name: str, condition: Condition, rng: np.random.Generator) -> Image.Image:
    """One drawing of the sign `name`."""
    width, height = condition.canvas
    half = rng.uniform(*condition.size) * min(width, height) / 2
    paths = by_hand(SIGNS[name], condition.turn, rng)
    everything = np.concatenate(paths)
    low, high = everything.min(0), everything.max(0)
    pen = rng.uniform(*condition.pen)
    scale = 2 * half / (high - low).max()
    room = (np.array([width, height]) - (high - low) * scale) / 2 - pen
    middle = np.array([width, height]) / 2 + rng.uniform(-1, 1, 2) * condition.place * room.clip(0)
    ink = Image.new("L", (2 * width, 2 * height))
    draw = ImageDraw.Draw(ink)
    for path in paths:
        points = 2 * ((path - (low + high) / 2) * scale + middle)
        draw.line([tuple(point) for point in points], 255, round(2 * pen), "curve")
        for x, y in (points[0], points[-1]):
            draw.ellipse([x - pen, y - pen, x + pen, y + pen], 255)
    return condition.finish(np.asarray(ink.reduce(2), np.float32) / 255, rng)


def draw_mixed(name: str, rng: np.random.Generator) -> Image.Image:
    """One drawing of the sign `name` in a condition picked at random, turned by up to 15 degrees."""
    condition = list(CONDITIONS.values())[rng.integers(len(CONDITIONS))]
    return draw_sign(name, replace(condition, turn=15), rng)


def by_hand(strokes: list, turn: float, rng: np.random.Generator) -> list[np.ndarray]:
    """The strokes as one hand draws them once: tilted, stretched, each a little off and unsteady."""
    angle = np.deg2rad(rng.uniform(-turn, turn))
    tilt = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    lean = np.eye(2) + rng.normal(0, 0.06, (2, 2))
    drawn = []
    for stroke in strokes:
        points = np.asarray(stroke, float)
        travel = np.r_[0, np.linalg.norm(np.diff(points, axis=0), axis=1).cumsum()]
        at = np.linspace(0, travel[-1], _POINTS)
        path = np.stack([np.interp(at, travel, axis) for axis in points.T], 1)
        wave = np.stack([np.interp(at, np.linspace(0, travel[-1], 7), rng.normal(0, 0.04, 7)) for _ in range(2)], 1)
        own = np.eye(2) + rng.normal(0, 0.04, (2, 2))
        centre = path.mean(0)
        reach = min(np.ptp(path, axis=0).max(), 1)  # dots stay dots
        drawn.append(((path - centre) @ own + centre + reach * wave + rng.normal(0, 0.03, 2)) @ lean @ tilt)
    return drawn
