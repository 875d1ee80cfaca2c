"""Writing files so that a half-written one never stands under its final name."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from maml_l2l.system.errors import UserError


def make_folder(path: Path) -> Path:
    """Create the folder `path` and its parents. Raises `UserError` where that cannot be done."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot create the folder {path}: {error.strerror}. Name one that can be written.") from None
    return path


def check_writable(path: Path) -> None:
    """Raise `UserError` where `write_atomically` could not write `path`; what stands there is left as it is."""
    if path.is_dir():
        raise UserError(f"cannot write {path}: it is a folder. Name a file.")
    try:
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}. Name a folder that can be written.") from None


def write_atomically(path: Path, write: Callable[[BinaryIO], object], previous: Path | None = None) -> None:
    """Call `write(file)` on a temporary file beside `path`, flush it to the disk, then rename it to `path`.

    Whatever happens on the way, `path` holds either its old contents or all of the new ones; with `previous`, the old
    contents move there, and for a moment between the two renames stand there only.
    Raises `UserError` where the folder cannot be written or the disk is full.
    """
    try:
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}. Name a folder that can be written.") from None
    try:
        with os.fdopen(descriptor, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        if previous is not None and path.exists():
            os.replace(path, previous)
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}. What stood there before is untouched.") from None
    finally:
        if os.path.exists(temporary):
            os.unlink(temporary)


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files that a killed process left in `folder`."""
    for leftover in folder.glob(".*.tmp"):
        leftover.unlink(missing_ok=True)


def write_json(path: str | Path, content: dict | list) -> None:
    """Write `content` as indented JSON, atomically; the folder is created where it is absent."""
    make_folder(Path(path).parent)
    write_atomically(Path(path), lambda file: file.write((json.dumps(content, indent=2) + "\n").encode()))
