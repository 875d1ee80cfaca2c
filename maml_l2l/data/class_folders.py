"""The classes in a folder of a user's own pictures: torchvision's ImageFolder layout, nested deeper, or split already.

A class is a folder that holds files and no folders; its name is its path, with '/' between levels. At the top, two or
three of the parts of a split (`train`, `val`, `test`, or other usual names of theirs, in any case) are no level of a
name. What `folder_contents` passes over, and the folders of runs, count as if they were not there.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from maml_l2l.data.folder_contents import contents, files_below, is_archive, is_new
from maml_l2l.data.formats import is_picture_name
from maml_l2l.data.picture_files import PictureFile, picture_file
from maml_l2l.system.errors import UserError, listing
from maml_l2l.system.files import reason

_log = logging.getLogger(__name__)

_PARTS = {
    **dict.fromkeys(("train", "training", "metatrain", "meta-train", "meta_train"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev", "metaval", "meta-val", "meta_val"), "val"),
    **dict.fromkeys(("test", "testing", "metatest", "meta-test", "meta_test"), "test"),
}


def looks_like_classes(root: Path) -> bool:
    """Whether most folders of `root`, or of a part of a split in it, hold pictures themselves. Raises `OSError`."""
    if not root.is_dir():
        return False
    folders = [entry for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith(".")]
    if any(looks_like_classes(folder) for folder in folders if folder.name.lower() in _PARTS):
        return True
    with_pictures = [folder for folder in folders if any(is_picture_name(entry.name) for entry in folder.iterdir())]
    return len(with_pictures) > 1 and 2 * len(with_pictures) > len(folders)


class ClassFolders(NamedTuple):
    """files: sorted by class. class_names: sorted. parts: that of each class, None where the folder is not split."""

    files: list[PictureFile]
    class_names: tuple[str, ...]
    parts: tuple[str, ...] | None


class NoPictures(UserError):
    """A folder is not there, or holds nothing."""


def find_classes(root: Path, otherwise: str = "") -> ClassFolders:
    """Scan `root` for classes. `otherwise`: what else the user can do where there are none, for the message.

    Raises `UserError` where there are none (`NoPictures`), where a class is empty or stands in two parts of a split,
    where something stands beside the parts, where pictures stand outside of class folders, and where something cannot
    be read.
    """
    runs: list[str] = []
    try:
        check_folder(root)
        leaves = dict(_leaves(str(root), "", set(), runs)) if root.exists() else {"": []}
    except OSError as error:
        raise UserError(f"cannot read {error.filename}: {reason(error)}. Make it readable, or remove it.") from None
    if leaves == {"": []} or not leaves:
        raise NoPictures(
            f"there {'are no pictures in' if root.exists() else 'is no folder'} {root}. Put pictures into a folder for "
            "each class, such as "
            f"{root}/cat/1.jpg{otherwise}."
        )
    if runs:
        _log.info(f"passed over the folders of runs: {listing(sorted(runs))}")
    empty = sorted(name for name, files in leaves.items() if not files)
    if empty:
        raise UserError(f"{root} holds folders without pictures: {listing(empty)}. Fill or remove them.")
    part_of_top = _parts(root, leaves)
    bare = sorted(name for name in leaves if not name or (part_of_top and "/" not in name))
    if bare:
        raise UserError(
            f"{root / bare[0]} holds files, but no class folders. Put pictures into a folder for each class, such as "
            f"{root / bare[0]}/cat/1.jpg."
        )
    files = sorted(file for of_class in leaves.values() for file in of_class)
    if not part_of_top:
        return ClassFolders(files, tuple(sorted(leaves)), None)
    part_of = _part_of_each_class(root, leaves, part_of_top)
    files = sorted(file._replace(class_name=file.class_name.partition("/")[2]) for file in files)
    return ClassFolders(files, tuple(sorted(part_of)), tuple(part_of[name] for name in sorted(part_of)))


def check_folder(path: Path) -> None:
    """Raise `UserError` where `path` is a file."""
    if path.is_file():
        what = "an archive. Unpack it, and name" if is_archive(path) else "a file. Name"
        raise UserError(f"{path} is {what} the folder that holds a folder of pictures for each class.")


def support_pictures(folder: Path) -> tuple[list[str], list[str]]:
    """The paths and class names of all pictures in the class folders of `folder`; see `class_folders`.

    Raises `UserError` where `folder` holds none.
    """
    check_folder(folder)
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}. Name one that holds a folder of pictures for each class.")
    files = find_classes(folder).files
    return [file.path for file in files], [file.class_name for file in files]


def query_pictures(paths: Iterable[Path]) -> list[str]:
    """`paths`, with each folder replaced by the possible pictures anywhere below it, sorted; see `folder_contents`.

    Raises `UserError` where one does not exist or cannot be read, and where a folder holds no pictures.
    """
    found: list[Path] = []
    for path in paths:
        if not path.exists():
            raise UserError(f"there is no file or folder {path}. Name pictures, or folders that hold some.")
        if not path.is_dir():
            found.append(path)
            continue
        try:
            pictures = sorted(files_below(str(path)))
        except OSError as error:
            raise UserError(f"cannot read {error.filename}: {reason(error)}. Make it readable, or remove it.") from None
        if not pictures:
            raise UserError(f"there are no pictures in the folder {path}. Name pictures, or folders that hold some.")
        found += pictures
    return [str(path) for path in found]


def _leaves(
    folder: str, name: str, seen: set[tuple[int, int]], runs: list[str]
) -> Iterator[tuple[str, list[PictureFile]]]:
    """Every folder without folders: its path below the root, with '/' between levels, and its files.

    seen: the folders that were scanned. Links could lead to one of them for ever, or by more ways than can be walked.
    runs: grows by the paths of runs, which are passed over.
    """
    if not is_new(folder, seen):
        raise UserError(f"{folder} leads by a link to a folder that was read already. Remove one of the two.")
    folders, files, is_run = contents(folder)
    if is_run:
        runs.append(folder)
        return
    if not folders:
        yield name, [picture_file(name, entry) for entry in files]
        return
    strays = sorted(entry.name for entry in files if is_picture_name(entry.name))
    if strays:
        beside = listing(sorted(entry.name for entry in folders), most=3)
        raise UserError(
            f"{folder} holds pictures beside its folders ({beside}), which belong to no class: {listing(strays)}. "
            "Move or remove them, or those folders."
        )
    for entry in folders:
        yield from _leaves(entry.path, f"{name}/{entry.name}" if name else entry.name, seen, runs)


def _parts(root: Path, names: Iterable[str]) -> dict[str, str]:
    """`Valid`: `val` for each folder at the top that is a part of a split; empty where the folder is not split.

    Raises `UserError` where it is unclear which the parts are.
    """
    tops = {name.partition("/")[0] for name in names}
    part_of_top = {top: _PARTS[top.casefold()] for top in sorted(tops) if top.casefold() in _PARTS}
    nested = {name.partition("/")[0] for name in names if "/" in name}
    if len(set(part_of_top.values())) < 2 or nested.isdisjoint(part_of_top):
        return {}
    given = ", ".join(sorted(part_of_top))
    if len(set(part_of_top.values())) < len(part_of_top):
        raise UserError(f"{root} holds one part of a split twice: {given}. Keep one folder for each of them.")
    others = sorted(tops - set(part_of_top))
    if others:
        raise UserError(
            f"{root} holds the parts of a split ({given}), and beside them {listing(others)}. Move those away, or "
            "rename the parts if they are classes."
        )
    return part_of_top


def _part_of_each_class(root: Path, paths: Iterable[str], part_of_top: dict[str, str]) -> dict[str, str]:
    """`Train/cat` -> `cat`: `train`."""
    top_of: dict[str, str] = {}
    shared = []
    for path in sorted(paths):
        top, _, name = path.partition("/")
        if top_of.setdefault(name, top) != top:
            shared.append(f"{name} ({top_of[name]} and {top})")
    if shared:
        raise UserError(
            f"{root} holds the same classes in two parts, so that training classes would be evaluated: "
            f"{listing(shared)}. Leave each in one part."
        )
    return {name: part_of_top[top] for name, top in top_of.items()}
