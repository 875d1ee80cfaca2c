"""Omniglot (Lake, Salakhutdinov and Tenenbaum, 2015): 1,623 characters of 50 alphabets, 20 drawings of each.

On disk it has torchvision's layout, so that either library uses what the other has downloaded:
`<root>/omniglot-py/{images_background,images_evaluation}/<Alphabet>/characterNN/NNNN_DD.png`.
"""

from __future__ import annotations

import itertools
import os
import re
import zipfile
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from maml_l2l.data import archives
from maml_l2l.data.omniglot_folder import BACKGROUND, EVALUATION, check_no_part, omniglot_folder
from maml_l2l.data.picture_files import PictureFile, digest, picture_file
from maml_l2l.system.errors import UserError
from maml_l2l.system.files import make_folder_in, open_regular, reason, write_atomically
from maml_l2l.system.messages import progress_bar

if TYPE_CHECKING:
    import numpy as np

    from maml_l2l.data.labelled_images import LabelledImages

BASE_ADDRESS = "https://raw.githubusercontent.com/brendenlake/omniglot/master/python"
# fmt: off
EVALUATION_ALPHABETS = (  # those of images_evaluation, sorted
    "Angelic", "Atemayar_Qelisayer", "Atlantean", "Aurek-Besh", "Avesta", "Ge_ez", "Glagolitic", "Gurmukhi",
    "Kannada", "Keble", "Malayalam", "Manipuri", "Mongolian", "Old_Church_Slavonic_(Cyrillic)", "Oriya",
    "Sylheti", "Syriac_(Serto)", "Tengwar", "Tibetan", "ULOG",
)
# fmt: on
DRAWINGS = 20  # of each character
_MAX_PIXELS = 2**22  # of one drawing: Omniglot's have 105 x 105

_CACHE = "omniglot-28x28{}.pt"
_WAYS_OUT = (
    "Without it, name a mirror's base address or a folder that holds images_background.zip and "
    "images_evaluation.zip, as --source of maml_l2l.download or as data.source in the config; or use the "
    "embedded data set, data.name: glyphs."
)


class _Part(NamedTuple):
    name: str
    md5: str  # of its archive, as torchvision states it
    characters: int


_PARTS = (
    _Part(BACKGROUND, "68d2efa1b9178cc56df9314c21c6e718", 964),
    _Part(EVALUATION, "6b91aef0f799c5bb55b94e3f2daec811", 659),
)


def load_omniglot(
    root: str | Path, source: str | None = None, verify: bool = True, ink: str = "finn"
) -> LabelledImages:
    """All drawings below `root`: (N, 1, 28, 28) uint8, ink = 255, N = 32,460; classes `Alphabet/characterNN`.

    What is missing is downloaded first, see `download_omniglot`. The decoded images are kept beside them,
    and decoded anew when a file has changed. ink: how drawings are read, as `data.ink` says.
    Raises `UserError` where the data are neither there nor to be had, and where an image is damaged.
    """
    from maml_l2l.data.labelled_images import cached  # imports PyTorch, which the download does without
    from maml_l2l.data.normalised_ink import ink_version

    folder = omniglot_folder(root)
    found = {part: _scan(folder, part) for part in _PARTS}
    if not all(_is_complete(part, files) for part, files in found.items()):
        download_omniglot(root, source, verify)
        found = {part: _scan(folder, part) for part in _PARTS}
    files = sorted(itertools.chain(*found.values()))
    cache = folder / _CACHE.format("" if ink == "finn" else f"-{ink}")
    return cached(cache, digest(folder, files) + ink_version(ink), lambda: _decode(files, ink))


def download_omniglot(root: str | Path, source: str | None = None, verify: bool = True) -> str:
    """Make `<root>/omniglot-py` whole and return one line that says where it is and what it holds.

    Files that are there are kept; missing ones, and those unlike the archive beside them, are written anew.
    `source`: another base address, or a folder, with the two archives (None: the authors' repository).
    `verify`: refuse archives whose MD5 sums are not torchvision's.
    Raises `UserError` where an archive cannot be had or is refused, or the folder cannot be written.
    """
    folder = omniglot_folder(root)
    if not folder.is_dir():
        check_no_part(root)
    folder = make_folder_in(folder.parent, folder.name)
    for part in _PARTS:
        _complete_part(folder, part, source, verify)
    files = [file for part in _PARTS for file in _scan(folder, part)]
    classes = {file.class_name for file in files}
    alphabets = {name.partition("/")[0] for name in classes}
    counts = f"{len(alphabets)} alphabets, {len(classes)} characters, {len(files)} images"
    return f"Omniglot is in {folder}: {counts}."


def _complete_part(folder: Path, part: _Part, source: str | None, verify: bool) -> None:
    files = _scan(folder, part)
    archive = folder / f"{part.name}.zip"
    if not _is_whole(archive, part, verify):
        if _is_complete(part, files):
            return
        try:
            archive = _obtain(archive, part, source, verify)
        except UserError as error:
            found = f"{folder / part.name} holds {len(files)} of {part.characters * DRAWINGS} images"
            raise UserError(f"{found}, and the rest is not to be had: {error}") from None
    infos = _images(archive, part)
    missing = [info for info in infos if not archives.same_content(folder / info.filename, info)]
    if missing:
        archives.extract(archive, missing, folder)


def _obtain(archive: Path, part: _Part, source: str | None, verify: bool) -> Path:
    """Return a checked archive: the one in the folder `source`, or `archive` freshly downloaded."""
    if source is not None and not re.match("https?://", source):
        local = Path(os.path.expanduser(source)) / archive.name
        if not local.is_file():
            raise UserError(
                f"there is no file {local}. The source must be a base address that begins with http:// or "
                "https://, or a folder that holds images_background.zip and images_evaluation.zip."
            )
        if verify:
            _check_sum(_read_bytes(local), part, str(local))
        return local
    address = f"{(source or BASE_ADDRESS).rstrip('/')}/{archive.name}"
    try:
        content = archives.fetch(address)
    except UserError as error:
        raise UserError(f"{error}. {_WAYS_OUT}") from None
    if verify:
        _check_sum(content, part, address)
    write_atomically(archive, lambda file: file.write(content))
    if not verify and not archives.is_whole(archive):
        archive.unlink()
        raise UserError(f"{address} is no whole zip archive. Try again or use another source.")
    return archive


def _read_bytes(archive: Path) -> bytes:
    """Raises `UserError` where `archive` cannot be read, or is too large to be one."""
    try:
        with open_regular(archive) as file:
            if os.fstat(file.fileno()).st_size > archives.MAX_BYTES:
                raise UserError(f"{archive} is larger than {archives.MAX_BYTES} bytes, so it is not Omniglot's.")
            return file.read()
    except OSError as error:
        raise UserError(f"cannot read {archive}: {reason(error)}. Make it readable.") from None


def _check_sum(content: bytes, part: _Part, origin: str) -> None:
    found = archives.md5_sum(content)
    if found != part.md5:
        raise UserError(
            f"{origin} has the MD5 sum {found}, that of the original archive is {part.md5}. Try again in "
            "case it was damaged on the way, or accept it, if trusted, with --no-verify (data.verify: false)."
        )


def _is_whole(archive: Path, part: _Part, verify: bool) -> bool:
    """Whether the archive that stands beside the images may serve: torchvision leaves half ones there too."""
    if not archive.is_file():
        return False
    return archives.md5_sum(_read_bytes(archive)) == part.md5 if verify else archives.is_whole(archive)


def _images(archive: Path, part: _Part) -> list[zipfile.ZipInfo]:
    pattern = re.compile(rf"{part.name}/[^/]+/[^/]+/[^/]+\.png")
    infos = [info for info in archives.list_files(archive) if pattern.fullmatch(info.filename)]
    if not infos:
        raise UserError(
            f"{archive} holds no image named {part.name}/<Alphabet>/<character>/<name>.png. "
            "It is not an Omniglot archive: use another source."
        )
    return infos


def _is_complete(part: _Part, files: list[PictureFile]) -> bool:
    sizes = Counter(file.class_name for file in files)
    full = sum(size >= DRAWINGS for size in sizes.values())
    return full >= part.characters and all(file.size for file in files)


def _scan(folder: Path, part: _Part) -> list[PictureFile]:
    """The images of one part in no particular order; none where its folder does not exist."""
    part_folder = str(folder / part.name)
    try:
        return list(_walk(part_folder))
    except OSError as error:
        if isinstance(error, FileNotFoundError) and error.filename == part_folder:
            return []
        raise UserError(
            f"cannot read {error.filename}: {error.strerror}. {folder} must be a readable folder in "
            "torchvision's layout: make it one, or name another."
        ) from None


def _walk(part_folder: str) -> Iterator[PictureFile]:
    for alphabet in _folders(part_folder):
        for character in _folders(alphabet.path):
            class_name = f"{alphabet.name}/{character.name}"
            for entry in os.scandir(character.path):
                if entry.name.endswith(".png") and not entry.name.startswith("."):
                    yield picture_file(class_name, entry)


def _folders(folder: str) -> list[os.DirEntry[str]]:
    return [entry for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith(".")]


def _decode(files: list[PictureFile], ink: str) -> LabelledImages:
    """`files`: sorted by class."""
    import numpy as np
    import torch

    from maml_l2l.data.labelled_images import LabelledImages
    from maml_l2l.data.processes import mapped

    class_names = sorted({file.class_name for file in files})
    index = {name: label for label, name in enumerate(class_names)}
    decoded = mapped(partial(_decode_file, ink=ink), [file.path for file in files], at_once=500)
    pixels = np.stack(list(progress_bar(decoded, "decoding Omniglot", total=len(files))))
    labels = [index[file.class_name] for file in files]
    return LabelledImages(torch.from_numpy(pixels[:, None]), torch.tensor(labels), tuple(class_names))


def _decode_file(path: str, ink: str = "finn") -> np.ndarray:
    from PIL import Image

    from maml_l2l.data.normalised_ink import READERS

    try:
        with open_regular(path) as file, Image.open(file, formats=["PNG"]) as image:
            if image.width * image.height > _MAX_PIXELS:
                raise ValueError(f"{image.width} x {image.height} pixels")
            return READERS[ink](image)
    except Exception as error:  # damaged bytes make Pillow's readers raise almost anything
        problem = reason(error) if isinstance(error, OSError) else error
        raise UserError(
            f"the image {path} is damaged ({problem}). Delete this file and run "
            "`python -m maml_l2l.download` with the same path and source: it writes the file anew."
        ) from None
