"""Small data sets that tests make up."""

import numpy as np
import torch
from PIL import Image, ImageDraw

from maml_l2l.data.labelled_images import LabelledImages


def numbered_images(classes: int, images_a_class: int, side: int = 4) -> LabelledImages:
    """Images that say who they are: the top left corner holds the class and the image within it, the rest is zero.

    Row 0 holds (class, image, 255, 0, ...), so that every one of the four rotations is told from the others.
    """
    pixels = torch.zeros(classes, images_a_class, 1, side, side, dtype=torch.uint8)
    pixels[:, :, 0, 0, 0] = torch.arange(classes, dtype=torch.uint8)[:, None]
    pixels[:, :, 0, 0, 1] = torch.arange(images_a_class, dtype=torch.uint8)
    pixels[:, :, 0, 0, 2] = 255
    labels = torch.arange(classes).repeat_interleave(images_a_class)
    return LabelledImages(pixels.flatten(0, 1), labels, tuple(f"class{index:03d}" for index in range(classes)))


def identities(images: torch.Tensor) -> torch.Tensor:
    """(..., 3) int64 (class, image, quarter turns) of images (..., 1, side, side) that come from `numbered_images`."""
    pixels = (images * 255).round().long().squeeze(-3)
    turns = torch.full(pixels.shape[:-2], -1)
    found = torch.zeros(*pixels.shape[:-2], 2, dtype=torch.int64)
    for turn in range(4):
        upright = torch.rot90(pixels, -turn, (-2, -1))
        match = upright[..., 0, 2] == 255
        turns[match] = turn
        found[match] = upright[..., 0, :2][match]
    assert (turns >= 0).all()
    return torch.cat([found, turns[..., None]], -1)


CORNERS = (0, 3, 4, 5, 8)  # of the five shapes; 0 is a disc, 8 a star
COLOURS = ((200, 40, 40), (40, 160, 40), (50, 50, 200), (180, 160, 20), (150, 40, 160), (20, 160, 160))


def textured_shape(label: int, rng: np.random.Generator) -> Image.Image:
    """A picture of class `label` of 30: one of five shapes in one of six striped colours, about the middle of a photo
    of no particular size, turned at random, on noise.
    """
    width, height = (int(side) for side in rng.integers(40, 90, 2))
    corners, look = CORNERS[label % 5], label // 5
    rows, columns = np.mgrid[:height, :width]
    angle = np.pi * look / 6
    light = np.sin((rows * np.sin(angle) + columns * np.cos(angle)) / 2) > 0
    texture = np.where(light[..., None], COLOURS[look], np.array(COLOURS[look]) // 3)
    centre = np.array([width, height]) / 2 + rng.normal(0, 3, 2)
    radius = min(width, height) * rng.uniform(0.3, 0.45)
    mask = Image.new("1", (width, height))
    if corners == 0:
        ImageDraw.Draw(mask).ellipse([*(centre - radius), *(centre + radius)], fill=1)
    else:
        turns = rng.uniform(0, 2 * np.pi) + 2 * np.pi * np.arange(corners) / corners
        radii = np.where(np.arange(corners) % 2, 0.4 * radius, radius) if corners == 8 else radius
        outline = centre + np.stack([radii * np.cos(turns), radii * np.sin(turns)], axis=1)
        ImageDraw.Draw(mask).polygon([tuple(corner) for corner in outline], fill=1)
    ground = rng.integers(150, 256, (height, width, 3))
    return Image.fromarray(np.where(np.asarray(mask)[..., None], texture, ground).astype(np.uint8))
