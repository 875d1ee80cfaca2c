"""Whether the processes that torchrun started work on the same experiment: of those that do not nobody would know."""

from __future__ import annotations

import hashlib
import zlib

import torch

from maml_l2l.config import Experiment, documented_keys
from maml_l2l.data.labelled_images import LabelledImages
from maml_l2l.data.splits import ClassSplit
from maml_l2l.system import distributed

_FREE = ("data.root", "data.source", "run.threads", "run.workers")  # each machine may have its own
_LOOKED_AT = 2**32  # bytes of pixels; of more a sample, as they lie on the disk


def check_same_experiment(experiment: Experiment) -> None:
    """Raise `UserError`, in all processes, where one has another config."""
    if distributed.processes() == 1:
        return
    keys = [(section, name) for section, name, _ in documented_keys() if f"{section}.{name}" not in _FREE]
    values = {f"`{section}.{name}`": getattr(getattr(experiment, section), name) for section, name in keys}
    distributed.check_same(values, "Start all processes with one config and the same options.")


def check_same_data(images: LabelledImages, split: ClassSplit, weights: dict[str, torch.Tensor] | None = None) -> None:
    """Raise `UserError`, in all processes, where one has other images or classes, or evaluates other weights."""
    if distributed.processes() == 1:
        return
    found = {
        "class split (a digest)": _digest(repr(sorted(split.items()))),
        "data set (a digest)": f"{_digest(repr(images.class_names))}{_sum(images.pixels)}{_sum(images.labels[None])}",
    }
    if weights is not None:
        found["checkpoint (a digest)"] = "".join(_sum(weights[name][None]) for name in sorted(weights))
    distributed.check_same(found, "Give all processes the same data and the same checkpoint.")


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:8]


def _sum(tensors: torch.Tensor) -> str:
    """Of shape and content, as far as `_LOOKED_AT` goes: CRC-32, as nobody attacks oneself."""
    stride = 1 + tensors.numel() * tensors.element_size() // _LOOKED_AT
    found = zlib.crc32(repr(tuple(tensors.shape)).encode())
    for tensor in tensors[::stride]:
        found = zlib.crc32(tensor.contiguous().cpu().flatten().view(torch.uint8).numpy(), found)
    return f"{found:08x}"
