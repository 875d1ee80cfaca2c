"""The one form in which every data set reaches the tasks, and its cache on disk."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from maml_l2l.system.errors import UserError
from maml_l2l.system.files import check_regular, make_folder_in, write_atomically
from maml_l2l.system.torch_files import load_torch_file, save_torch_file


@dataclass(frozen=True)
class LabelledImages:
    """All images of a data set, decoded, sorted by class.

    pixels: (N, C, H, W) uint8; the network sees `pixels / 255`.
    labels: (N,) int64, non-decreasing; an index into `class_names`.
    class_names: sorted, unique, with '/' between levels, e.g. `Greek/character03`.
    parts: where the data set comes split, `train`, `val` or `test` for each class, in the order of `class_names`.
    """

    pixels: torch.Tensor
    labels: torch.Tensor
    class_names: tuple[str, ...]
    parts: tuple[str, ...] | None = None

    def class_sizes(self) -> list[int]:
        """Number of images of each class, in the order of `class_names`."""
        return torch.bincount(self.labels, minlength=len(self.class_names)).tolist()


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
        warnings.warn(f"the decoded images could not be cached: {error}", stacklevel=2)
    return _read(path, source_key, on_disk) if on_disk else images


def _read(path: Path, source_key: str, on_disk: bool) -> LabelledImages:
    """Raises almost any error where the file is absent, damaged, of another source, or holds what it should not."""
    # Mapped files are not read through, as checking their sums would.
    check_regular(path.stat(), path)
    stored = torch.load(path, weights_only=True, mmap=True) if on_disk else load_torch_file(path, "image cache")
    images = LabelledImages(stored["pixels"], stored["labels"], tuple(stored["class_names"]))
    if stored["source_key"] != source_key or not _is_sound(images):
        raise ValueError("made from another source, or by another program")
    return images


def _is_sound(images: LabelledImages) -> bool:
    """Whether everything that `LabelledImages` promises holds; may raise where attributes are of other types."""
    pixels, labels, names = images.pixels, images.labels, images.class_names
    return (
        (pixels.dtype, pixels.ndim) == (torch.uint8, 4)
        and (labels.dtype, labels.shape) == (torch.int64, pixels.shape[:1])
        and all(isinstance(name, str) for name in names)
        and list(names) == sorted(set(names))
        and torch.equal(labels.unique_consecutive(), torch.arange(len(names)))
    )
