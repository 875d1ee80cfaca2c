"""The one form in which every data set reaches the tasks, and its cache on disk."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from maml_l2l.system.errors import UserError
from maml_l2l.system.files import check_regular, make_folder_in, write_atomically
from maml_l2l.system.messages import warn_user
from maml_l2l.system.torch_files import load_torch_file, save_torch_file


@dataclass(frozen=True)
class LabelledImages:
    """All images of a data set, decoded, sorted by class.

    pixels: (N, C, H, W) uint8; the network sees `pixels / 255`.
    labels: (N,) int64, non-decreasing; an index into `class_names`.
    class_names: sorted, unique, with '/' between levels, e.g. `Greek/character03`.
    parts: where the data set comes split, `train`, `val` or `test` for each class, in the order of `class_names`.

    A class may have no image. Raises `UserError` where a part is something else.
    """

    pixels: torch.Tensor
    labels: torch.Tensor
    class_names: tuple[str, ...]
    parts: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        pixels, labels, names = self.pixels, self.labels, list(self.class_names)
        if (pixels.dtype, pixels.ndim) != (torch.uint8, 4):
            raise UserError(f"pixels: expected (N, C, H, W) uint8, found {_found(pixels)}. Images are from 0 to 255.")
        if (labels.dtype, labels.shape) != (torch.int64, pixels.shape[:1]):
            raise UserError(f"labels: expected ({len(pixels)},) int64, one for each image, found {_found(labels)}.")
        if not all(isinstance(name, str) for name in names) or names != sorted(set(names)):
            raise UserError("class_names: expected different strings, sorted. Sort them, and number the labels so.")
        if (labels[1:] < labels[:-1]).any():
            raise UserError("labels: expected them in ascending order. labels.sort(stable=True) gives the order.")
        if len(labels) and (labels[0] < 0 or labels[-1] >= len(names)):
            found = f"{labels[0]} to {labels[-1]}"
            raise UserError(f"labels: expected 0 to {len(names) - 1}, for {len(names)} class_names, found {found}.")
        if self.parts is not None and (len(self.parts) != len(names) or set(self.parts) - {"train", "val", "test"}):
            raise UserError(f"parts: expected train, val or test for each of the {len(names)} classes.")

    def class_sizes(self) -> list[int]:
        """Number of images of each class, in the order of `class_names`."""
        return torch.bincount(self.labels, minlength=len(self.class_names)).tolist()


def joined(first: LabelledImages, second: LabelledImages) -> LabelledImages:
    """The images of both, which share no class; sorted by class anew."""
    names = sorted([*first.class_names, *second.class_names])
    label_of = torch.tensor([names.index(name) for name in [*first.class_names, *second.class_names]])
    labels = label_of[torch.cat([first.labels, second.labels + len(first.class_names)])]
    order = labels.argsort(stable=True)
    return LabelledImages(torch.cat([first.pixels, second.pixels])[order], labels[order], tuple(names))


def cached(path: Path, source_key: str, make: Callable[[], LabelledImages], on_disk: bool = False) -> LabelledImages:
    """Return `make()`, kept in the file `path` for as long as `source_key` stays the same.

    `source_key` names everything that the pixels depend on. A cache file that is damaged, or that was made from
    another source, is made anew. A cache that cannot be written costs a warning, never the run.
    on_disk: the pixels are not read into memory, but mapped from `path`; where that cannot be written: `UserError`.
    """
    with contextlib.suppress(Exception):  # absent, of another source, or damaged, which may raise almost anything
        return _read(path, source_key, on_disk)
    images = make()
    content = {
        "source_key": source_key,
        "pixels": images.pixels,
        "labels": images.labels,
        "class_names": list(images.class_names),
    }
    try:
        make_folder_in(path.parent.parent, path.parent.name)
        write_atomically(path, lambda file: save_torch_file(content, file))
    except UserError as error:
        if on_disk:
            raise
        warn_user(f"the decoded images could not be cached: {error}")
    return _read(path, source_key, on_disk) if on_disk else images


def _read(path: Path, source_key: str, on_disk: bool) -> LabelledImages:
    """Raises almost any error where the file is absent, damaged, of another source, or holds what it should not."""
    # Mapped files are not read through, as checking their sums would.
    check_regular(path.stat(), path)
    stored = torch.load(path, weights_only=True, mmap=True) if on_disk else load_torch_file(path, "image cache")
    if stored["source_key"] != source_key:
        raise ValueError("made from another source")
    return LabelledImages(stored["pixels"], stored["labels"], tuple(stored["class_names"]))


def _found(tensor: torch.Tensor) -> str:
    return f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"
