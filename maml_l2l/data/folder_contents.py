"""What stands in a folder of pictures, without what systems, file servers and training leave there."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from maml_l2l.data.formats import is_picture_name
from maml_l2l.system import run_files

_NOT_PICTURES = {"thumbs.db", "ehthumbs.db", "ehthumbs_vista.db", "desktop.ini", "icon\r"}
_NOT_PICTURE_ENDINGS = {".txt", ".json", ".csv", ".md"}
# Of file servers (Synology, QNAP), Windows, Linux and macOS' archives. Those that begin with a dot are hidden anyway.
_NOT_CLASSES = {
    *("@eadir", "@tmp", "@recycle", "@recently-snapshot", "@sharebin", "#recycle", "#snapshot"),
    *("$recycle.bin", "system volume information", "lost+found", "__macosx"),
}
_OTHER_ARCHIVES = (".7z", ".rar")  # beside those that Python unpacks


class Contents(NamedTuple):
    """folders, files: as `os.scandir` found them. is_run: whether training keeps a run there."""

    folders: list[os.DirEntry[str]]
    files: list[os.DirEntry[str]]
    is_run: bool


def contents(folder: str) -> Contents:
    """The folders and the possible pictures in `folder`; links are followed.

    Hidden files and folders are passed over, notes, and what systems and file servers keep beside pictures.
    Raises `OSError` where it cannot be read.
    """
    with os.scandir(folder) as found:
        entries = list(found)
    names = {entry.name for entry in entries}
    shown = [entry for entry in entries if not entry.name.startswith(".")]
    folders = [entry for entry in shown if entry.is_dir()]
    files = [entry for entry in shown if not entry.is_dir() and may_be_picture(entry.name)]
    folders = [entry for entry in folders if entry.name.lower() not in _NOT_CLASSES]
    others = [entry for entry in files if entry.name not in run_files.NAMES]
    started = run_files.LOCK in names or {run_files.CONFIG, run_files.METRICS} <= names
    return Contents(folders, files, started and not any(map(_looks_like_picture, others)))


def may_be_picture(name: str) -> bool:
    """Whether a file of this name counts among the pictures of its folder."""
    return name.lower() not in _NOT_PICTURES and os.path.splitext(name)[1].lower() not in _NOT_PICTURE_ENDINGS


def _looks_like_picture(entry: os.DirEntry[str]) -> bool:
    return is_picture_name(entry.name) or "." not in entry.name


def files_below(folder: str) -> Iterator[Path]:
    """The possible pictures anywhere below `folder`, in no order; each folder once, however many links lead there.

    Raises `OSError` where a folder cannot be read.
    """
    seen: set[tuple[int, int]] = set()
    for above in Path(folder).resolve().parents:  # a link to one of them is a loop
        is_new(str(above), seen)
    waiting = [folder]
    while waiting:
        at = waiting.pop()
        if is_new(at, seen):
            found = contents(at)
            if not found.is_run:
                yield from (Path(entry.path) for entry in found.files)
                waiting += [entry.path for entry in found.folders]


def is_new(folder: str, seen: set[tuple[int, int]]) -> bool:
    """Whether `folder` is not yet among those `seen`, to which it is added."""
    status = os.stat(folder)
    identity = status.st_dev, status.st_ino
    if identity in seen:
        return False
    seen.add(identity)
    return True


def is_archive(path: Path) -> bool:
    """Whether the file `path` is an archive by its name."""
    endings = [ending for _, of_format, _ in shutil.get_unpack_formats() for ending in of_format]
    return path.name.lower().endswith((*endings, *_OTHER_ARCHIVES))
