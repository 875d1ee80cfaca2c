"""Writing files with `torch.save`, and reading them, whoever sent them."""

from __future__ import annotations

import errno
import io
import os
import pickletools
import re
import shutil
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import torch

from maml_l2l.system.errors import UserError
from maml_l2l.system.files import open_regular, reason
from maml_l2l.system.zip_files import MAX_AT_ONCE, open_zip, read_entry

_IN_MEMORY = 2**30  # bytes of the checked copy; larger ones are kept on the disk

# The entries that `torch.load` needs, below a folder of the archive that has any name.
_ENTRY = re.compile(r"[^/]+/(data\.pkl|version|byteorder|data/[0-9]+)")

# What the pickles of tensors and state dicts name. All of these tensors are strided.
_HARMLESS = {"torch._utils _rebuild_tensor_v2", "collections OrderedDict"} | {
    f"torch {dtype}Storage"
    for dtype in ("BFloat16", "Bool", "Byte", "Char", "Double", "Float", "Half", "Int", "Long", "Short")
}


class UnreadableFile(UserError):
    """The system does not let this user read a file, which may be whole."""


class _Damaged(Exception):
    """A file is not one of `torch.save`, or no longer."""


class _ForeignObject(Exception):
    """A pickle names something that could run code; the argument says what."""


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

    PyTorch's `weights_only=True` runs no code, but checks no sums, does not bound what the file unpacks to, and finds
    other entries in a crafted archive than Python's zipfile does. So the entries are checked and written into a new
    archive, and that one PyTorch gets to see.
    Raises `UserError` where it is larger than `max_bytes`, damaged, or holds objects of other kinds, and its kind
    `UnreadableFile` where it is absent or the system does not let it be read.
    """
    try:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            if max_bytes is not None and size > max_bytes:
                raise UserError(f"{path} is larger than {max_bytes} bytes, which no {kind} is.")
            return _load(file, size)
    except FileNotFoundError:
        raise UnreadableFile(f"there is no {kind} {path}.") from None
    except OSError as error:
        raise UnreadableFile(f"cannot read the {kind} {path}: {reason(error)}.") from None
    except _Damaged:
        raise UserError(f"{path} is not a {kind}, or is damaged.") from None
    except _ForeignObject as error:
        raise UserError(f"{path} holds objects that could run code when loaded, such as {error}.") from None


def _load(file: io.BufferedReader, size: int) -> Any:
    with tempfile.SpooledTemporaryFile(_IN_MEMORY) as checked:
        try:
            with open_zip(file) as archive, zipfile.ZipFile(checked, "w") as copy:
                _copy_checked(archive, copy, size)
            checked.seek(0)
            return torch.load(checked, map_location="cpu", weights_only=True)
        except _ForeignObject:
            raise
        except Exception as error:  # damaged bytes make the readers raise almost anything
            if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):  # that is no byte of the file
                raise
            raise _Damaged from None


def _copy_checked(archive: zipfile.ZipFile, copy: zipfile.ZipFile, size: int) -> None:
    """Copy what `torch.load` needs. Raises almost any error where an entry of the `size` bytes is not as it should be.

    `torch.save` compresses nothing: what is packed, or says that it is larger than the file, is a bomb.
    """
    entries = {info: info.filename.partition("/")[2] for info in archive.infolist() if _ENTRY.fullmatch(info.filename)}
    packed = any(info.compress_type != zipfile.ZIP_STORED for info in entries)
    if packed or len(set(entries.values())) < len(entries) or sum(info.file_size for info in entries) > size:
        raise _Damaged
    for info, name in entries.items():
        new = zipfile.ZipInfo(f"archive/{name}")
        new.file_size = info.file_size  # from 2 GiB on it makes a difference
        if name == "data.pkl":
            if info.file_size > MAX_AT_ONCE:
                raise _Damaged
            pickled = read_entry(archive, info)
            foreign = next(_foreign_names(pickled), None)
            if foreign is not None:
                raise _ForeignObject(foreign)
            copy.writestr(new, pickled)
        else:
            with archive.open(info) as source, copy.open(new, "w") as target:
                shutil.copyfileobj(source, target, 2**20)


def _foreign_names(pickled: bytes) -> Iterator[str]:
    """What a pickle names beside tensors and state dicts. Raises almost any error where it is damaged."""
    for opcode, argument, _ in pickletools.genops(pickled):
        if opcode.name in ("GLOBAL", "STACK_GLOBAL", "INST") and argument not in _HARMLESS:
            yield str(argument or opcode.name).replace(" ", ".")
