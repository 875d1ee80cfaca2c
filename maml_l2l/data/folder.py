"""A folder of a user's own pictures, decoded once; see `class_folders` for its layout."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import math
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from platformdirs import user_cache_path

from maml_l2l.config import Data
from maml_l2l.data.class_folders import ClassFolders, find_classes
from maml_l2l.data.labelled_images import LabelledImages, cached
from maml_l2l.data.normalised_ink import ink_version
from maml_l2l.data.picture_files import PictureFile, digest
from maml_l2l.data.pictures import read_picture
from maml_l2l.system.errors import UserError, listing
from maml_l2l.system.files import make_folder_in, temporary_folder
from maml_l2l.system.messages import progress_bar, warn_user

_log = logging.getLogger(__name__)

DECODING_VERSION = 2  # raise it with every change that alters a pixel: it is part of the cache's key

_PIXEL_KEYS = ("image_size", "channels", "fit", "invert", "ink", "skip_damaged")  # of `Data`, that the pixels depend on
_MIB = 2**20
_READABLE = 40  # characters of a folder's name in that of its cache


def load_folder(data: Data) -> LabelledImages:
    """All pictures below `data.root`: (N, `data.channels`, `data.image_size`, `data.image_size`) uint8.

    They are kept in the user's folder of caches, see `cache_folder`, and decoded anew when a file or a key has changed.
    Where they take more than `data.max_memory` MiB they stay on the disk, memory-mapped. The same picture in two
    classes costs a warning.
    Raises `UserError` where the folder does not serve, see `find_classes`, and where a file cannot be read as a
    picture, unless `data.skip_damaged` leaves it out: a class that has no other stays, empty.
    """
    root = Path(data.root)
    found = find_classes(root, otherwise=f", or run `python -m maml_l2l.download --path {root}` for Omniglot")
    shape = (len(found.files), data.channels, data.image_size, data.image_size)
    cache = cache_folder(root) / f"pictures-{data.channels}x{data.image_size}x{data.image_size}.pt"
    keys = ", ".join(f"{key} {getattr(data, key)}" for key in _PIXEL_KEYS)
    source_key = f"decoding version {DECODING_VERSION}, {keys}, {digest(root, found.files)}{ink_version(data.ink)}"
    on_disk = math.prod(shape) > data.max_memory * _MIB
    with contextlib.ExitStack() as stack:

        def decode() -> LabelledImages:
            if on_disk:
                return _decode(found, data, _empty_on_disk(shape, cache.parent, stack))
            return _decode(found, data, torch.empty(shape, dtype=torch.uint8))

        images = cached(cache, source_key, decode, on_disk)
    skipped = len(found.files) - len(images.labels)
    if skipped:
        _log.info(
            f"left out {skipped} of {len(found.files)} files, which cannot be read as pictures "
            "(data.skip_damaged: false names them)"
        )
    empty = [name for name, size in zip(images.class_names, images.class_sizes(), strict=True) if not size]
    if empty:
        _log.info(f"left out {len(empty)} of {len(found.class_names)} classes, which have no other: {listing(empty)}")
    return replace(images, parts=found.parts)


def cache_folder(root: Path) -> Path:
    """Where the decoded pictures of the folder `root` are kept: never among them, and for each folder another place.

    It lies where the system keeps its users' caches, which XDG_CACHE_HOME sets. Raises `UserError` where none is known.
    """
    path = root.resolve()
    key = hashlib.sha256(os.fsencode(path)).hexdigest()
    try:
        caches = user_cache_path("maml_l2l", appauthor=False)
    except RuntimeError:
        raise UserError("you have no home folder, so set XDG_CACHE_HOME to one for decoded pictures.") from None
    return caches / "folders" / f"{path.name[:_READABLE]}-{key}"


def _empty_on_disk(shape: tuple[int, ...], folder: Path, stack: contextlib.ExitStack) -> torch.Tensor:
    """A tensor in a temporary file below `folder`, which `stack` removes."""
    size = math.prod(shape)
    try:
        free = shutil.disk_usage(make_folder_in(folder.parent, folder.name)).free
        if free < 2 * size:  # for this file and the cache; a full disk would end the process without a word
            raise UserError(f"{folder} has {free / _MIB:.0f} MiB left, and {2 * size / _MIB:.0f} are needed.")
        temporary = stack.enter_context(temporary_folder(folder, "pixels"))
    except (OSError, UserError) as error:
        raise UserError(
            f"the decoded pictures take {size / _MIB:.0f} MiB, which is more than data.max_memory, and they cannot be "
            f"kept on the disk: {error} Make room there, raise data.max_memory, or lower data.image_size."
        ) from None
    return torch.from_file(os.path.join(temporary, "pixels"), shared=True, size=size, dtype=torch.uint8).view(shape)


def _decode(found: ClassFolders, data: Data, pixels: torch.Tensor) -> LabelledImages:
    """Decode all files into `pixels`; where some are left out, its last rows are."""
    label_of = {name: label for label, name in enumerate(found.class_names)}
    labels, unread, twins = [], [], []
    first_with: dict[bytes, PictureFile] = {}
    with contextlib.closing(_read_all(found.files, data)) as pictures:
        for file, picture in progress_bar(pictures, "decoding pictures", total=len(found.files), unit="picture"):
            if isinstance(picture, UserError):
                unread.append(str(picture))
                continue
            pixels[len(labels)] = torch.from_numpy(picture)
            labels.append(label_of[file.class_name])
            twin = first_with.setdefault(hashlib.sha256(picture.tobytes()).digest(), file)
            if twin.class_name != file.class_name:
                twins.append(f"{twin.path} and {file.path}")
    if unread and not data.skip_damaged:
        raise UserError(
            f"{len(unread)} of {len(found.files)} files cannot be read as pictures (data.skip_damaged: true leaves "
            f"them out): {listing(unread)}"
        )
    if twins:
        warn_user(f"the same picture is in two classes: {listing(twins)}")
    if not labels:
        raise UserError(f"none of the {len(unread)} files can be read as pictures: {listing(unread)}")
    return LabelledImages(pixels[: len(labels)], torch.tensor(labels), found.class_names)


def _read_all(files: list[PictureFile], data: Data) -> Iterator[tuple[PictureFile, np.ndarray | UserError]]:
    """Each file with what it holds, in order, decoded by as many threads as there are cores: Pillow frees the GIL."""

    def read(file: PictureFile) -> np.ndarray | UserError:
        try:
            return read_picture(file.path, data)
        except UserError as error:
            return error

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        try:
            yield from zip(files, pool.map(read, files), strict=True)
        finally:
            pool.shutdown(cancel_futures=True)  # after Ctrl-C the rest is not read first
