"""Writing files with `torch.save`, and reading them, whoever sent them."""

from __future__ import annotations

import os
import pickletools
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import torch

from maml_l2l.system.errors import UserError

_MAX_PICKLE = 2**24  # bytes of everything but the tensors' contents: 100 times what a checkpoint of Omniglot has

# What the pickles of tensors and state dicts name.
_HARMLESS = {"torch._utils _rebuild_tensor_v2", "collections OrderedDict"} | {
    f"torch {dtype}Storage"
    for dtype in ("BFloat16", "Bool", "Byte", "Char", "Double", "Float", "Half", "Int", "Long", "Short")
}


def save_torch_file(content: Any, file: BinaryIO) -> None:
    """`torch.save`; an error of the disk comes out as the `OSError` that it is."""
    try:
        torch.save(content, file)
    except RuntimeError as error:  # PyTorch's writer raises its own, on the way out
        if isinstance(error.__context__, OSError):
            raise error.__context__ from None
        raise


def load_torch_file(path: Path, kind: str, max_bytes: int | None = None) -> Any:
    """The tensors, numbers, text and containers in the file `path`, which should be a `kind`; tensors on the CPU.

    PyTorch's `weights_only=True` runs no code, but checks no sums and does not bound what the file unpacks to.
    Raises `UserError` where it is absent, larger than `max_bytes`, damaged, or holds objects of other kinds.
    """
    try:
        if path.exists() and not path.is_file():  # a folder, or a pipe that never ends
            raise _damaged(path, kind)
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if max_bytes is not None and size > max_bytes:
                raise UserError(f"{path} is larger than {max_bytes} bytes, which no {kind} is.")
            return _load(file, size, path, kind)
    except FileNotFoundError:
        raise UserError(f"there is no {kind} {path}.") from None
    except OSError as error:
        raise UserError(f"cannot read the {kind} {path}: {error.strerror}.") from None


def _load(file: BinaryIO, size: int, path: Path, kind: str) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PyTorch's remarks on odd files, which are refused or do no harm
            foreign = next(_foreign_names(file, size), None)
            if foreign is None:
                file.seek(0)
                return torch.load(file, map_location="cpu", weights_only=True)
    except Exception:  # damaged bytes make the unpickler raise almost anything
        raise _damaged(path, kind) from None
    raise UserError(f"{path} holds objects that could run code when loaded, such as {foreign}.")


def _foreign_names(file: BinaryIO, size: int) -> Iterator[str]:
    """What the pickles in a file of `torch.save` name beside tensors and state dicts.

    Raises almost any error where the file is damaged.
    """
    if file.read(2) != b"PK":  # not at its start, where PyTorch looks
        raise ValueError("no zip archive")
    with zipfile.ZipFile(file) as archive:
        infos = archive.infolist()
        # `torch.save` compresses nothing: what says that it unpacks to more than its size is a bomb.
        if sum(info.file_size for info in infos) > size or archive.testzip() is not None:
            raise ValueError("damaged")
        pickles = [info for info in infos if info.filename.endswith(".pkl")]
        if sum(info.file_size for info in pickles) > _MAX_PICKLE:
            raise ValueError("too large")
        for info in pickles:
            for opcode, argument, _ in pickletools.genops(archive.read(info)):
                if opcode.name in ("GLOBAL", "STACK_GLOBAL", "INST") and argument not in _HARMLESS:
                    yield str(argument or opcode.name).replace(" ", ".")


def _damaged(path: Path, kind: str) -> UserError:
    return UserError(f"{path} is not a {kind}, or is damaged.")
