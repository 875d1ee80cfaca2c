"""The classes in a folder of a user's own pictures: torchvision's ImageFolder layout, nested deeper, or split already.

A class is a folder that holds files and no folders; its name is its path, with '/' between levels. At the top, `train`
together with `val`, `test` or both, and no other folder, are the parts of a split and no level of a name. Hidden files
and folders are passed over, and so are Thumbs.db, desktop.ini and files that end in .txt, .json, .csv or .md.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from maml_l2l.data.picture_files import PictureFile, picture_file
from maml_l2l.data.splits import SPLITS
from maml_l2l.system.errors import UserError, listing
from maml_l2l.system.files import reason

_NOT_PICTURES = {"thumbs.db", "desktop.ini"}
_NOT_PICTURE_ENDINGS = {".txt", ".json", ".csv", ".md"}


class ClassFolders(NamedTuple):
    """files: sorted by class. class_names: sorted. parts: that of each class, None where the folder is not split."""

    files: list[PictureFile]
    class_names: tuple[str, ...]
    parts: tuple[str, ...] | None


def find_classes(root: Path, otherwise: str = "") -> ClassFolders:
    """Scan `root` for classes. `otherwise`: what else the user can do where there are none, for the message.

    Raises `UserError` where there are none, where a class is empty or stands in two parts of a split, where pictures
    stand outside of class folders, and where something cannot be read.
    """
    try:
        leaves = dict(_leaves(str(root), "", set())) if root.exists() else {"": []}
    except OSError as error:
        raise UserError(f"cannot read {error.filename}: {reason(error)}. Make it readable, or remove it.") from None
    if leaves == {"": []}:
        raise UserError(
            f"there are no pictures in {root}. Put them into a folder for each class, such as "
            f"{root}/cat/1.jpg{otherwise}."
        )
    empty = sorted(name for name, files in leaves.items() if not files)
    if empty:
        raise UserError(f"{root} holds folders without pictures: {listing(empty)}. Fill or remove them.")
    tops = {name.partition("/")[0] for name in leaves}
    is_split = "train" in tops and len(tops) > 1 and tops <= set(SPLITS)
    bare = sorted(name for name in leaves if not name or (is_split and "/" not in name))
    if bare:
        raise UserError(
            f"{root / bare[0]} holds files, but no class folders. Put pictures into a folder for each class, such as "
            f"{root / bare[0]}/cat/1.jpg."
        )
    part_of = _part_of_each_class(root, leaves) if is_split else None
    files = sorted(file for of_class in leaves.values() for file in of_class)
    if part_of is None:
        return ClassFolders(files, tuple(sorted(leaves)), None)
    files = sorted(file._replace(class_name=file.class_name.partition("/")[2]) for file in files)
    return ClassFolders(files, tuple(sorted(part_of)), tuple(part_of[name] for name in sorted(part_of)))


def support_pictures(folder: Path) -> tuple[list[str], list[str]]:
    """The paths and class names of all pictures in the class folders of `folder`; see `class_folders`.

    Raises `UserError` where `folder` holds none.
    """
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}. Name one that holds a folder of pictures for each class.")
    files = find_classes(folder).files
    return [file.path for file in files], [file.class_name for file in files]


def query_pictures(paths: Iterable[Path]) -> list[str]:
    """`paths`, with each folder replaced by the pictures anywhere below it, sorted; hidden ones are passed over.

    Raises `UserError` where one does not exist, and where a folder holds no pictures.
    """
    found: list[Path] = []
    for path in paths:
        if not path.exists():
            raise UserError(f"there is no file or folder {path}. Name pictures, or folders that hold some.")
        if not path.is_dir():
            found.append(path)
            continue
        below = [file for file in sorted(path.rglob("*")) if file.is_file() and may_be_picture(file.name)]
        pictures = [file for file in below if not any(part[0] == "." for part in file.relative_to(path).parts)]
        if not pictures:
            raise UserError(f"there are no pictures in the folder {path}. Name pictures, or folders that hold some.")
        found += pictures
    return [str(path) for path in found]


def _leaves(folder: str, name: str, seen: set[tuple[int, int]]) -> Iterator[tuple[str, list[PictureFile]]]:
    """Every folder without folders: its path below the root, with '/' between levels, and its files.

    seen: the folders that were scanned. Links could lead to one of them for ever, or by more ways than can be walked.
    """
    status = os.stat(folder)
    if (status.st_dev, status.st_ino) in seen:
        raise UserError(f"{folder} leads by a link to a folder that was read already. Remove one of the two.")
    seen.add((status.st_dev, status.st_ino))
    entries = [entry for entry in os.scandir(folder) if not entry.name.startswith(".")]
    folders = [entry for entry in entries if entry.is_dir()]
    files = [entry for entry in entries if not entry.is_dir() and may_be_picture(entry.name)]
    if not folders:
        yield name, [picture_file(name, entry) for entry in files]
        return
    strays = sorted(entry.name for entry in files if _ending(entry.name) in _picture_endings())
    if strays:
        raise UserError(
            f"{folder} holds pictures beside its folders, which belong to no class: {listing(strays)}. "
            "Move or remove them."
        )
    for entry in folders:
        yield from _leaves(entry.path, f"{name}/{entry.name}" if name else entry.name, seen)


def may_be_picture(name: str) -> bool:
    """Whether a file of this name counts among the pictures of its folder."""
    return name.lower() not in _NOT_PICTURES and _ending(name) not in _NOT_PICTURE_ENDINGS


def _ending(name: str) -> str:
    return os.path.splitext(name)[1].lower()


def _picture_endings() -> set[str]:
    return {ending for ending, kind in Image.registered_extensions().items() if kind in Image.OPEN}


def _part_of_each_class(root: Path, paths: Iterable[str]) -> dict[str, str]:
    """`train/cat` -> `cat`: `train`."""
    part_of: dict[str, str] = {}
    shared = []
    for path in sorted(paths):
        part, _, name = path.partition("/")
        if part_of.setdefault(name, part) != part:
            shared.append(f"{name} ({part_of[name]} and {part})")
    if shared:
        raise UserError(
            f"{root} holds the same classes in two parts, so that training classes would be evaluated: "
            f"{listing(shared)}. Leave each in one part."
        )
    return part_of
