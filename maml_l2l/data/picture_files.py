"""Image files on the disk, as a scan of their folders finds them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple


class PictureFile(NamedTuple):
    """One file. Tuples sort by class, then by name."""

    class_name: str  # with '/' between levels
    name: str
    size: int  # in bytes
    mtime_ns: int
    path: str


def picture_file(class_name: str, entry: os.DirEntry[str]) -> PictureFile:
    """The file that `os.scandir` found. Raises `OSError` where a link leads nowhere."""
    status = entry.stat()
    return PictureFile(class_name, entry.name, status.st_size, status.st_mtime_ns, entry.path)


def digest(folder: Path, files: Iterable[PictureFile]) -> str:
    """Of what the decoded pixels depend on: each file's path below `folder`, size and time of change."""
    start = len(str(folder))
    lines = (f"{file.path[start:]}\t{file.size}\t{file.mtime_ns}\n" for file in files)
    return hashlib.sha256("".join(lines).encode(errors="surrogateescape")).hexdigest()
