"""Small data sets that tests make up."""

import torch

from maml_l2l.data.images import LabelledImages


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
