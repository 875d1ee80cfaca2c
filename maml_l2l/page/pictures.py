"""Pictures as they travel between the page and the server: small files, base64 in JSON, zip archives of them."""

from __future__ import annotations

import base64
import io
import unicodedata
import zipfile
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Any

import numpy as np
from PIL import Image

from maml_l2l.data.depth import UnknownRange, eight_bits
from maml_l2l.data.folder_contents import may_be_class, may_be_picture
from maml_l2l.data.pictures import decoded_picture, upright
from maml_l2l.data.splits import SPLITS
from maml_l2l.system.errors import UserError
from maml_l2l.system.zip_files import open_zip, read_entry

SIDE = 512  # pixels of the longer side of the pictures that the page keeps
MOST_PICTURES = 200  # of a support set
_MOST_PIXELS = 50_000_000  # of a picture file
_MOST_ENTRY, _MOST_UNPACKED = 2**25, 2**27  # bytes of an archive
_LOSSY = {"JPEG", "MPO", "WEBP"}
_KEPT_MODES = {"1", "L", "LA", "RGB", "RGBA"}
# What Windows keeps for itself, and what `find_classes` would take for the parts of a split.
_TAKEN = {"con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in range(10)), *SPLITS}
_LONGEST_NAME = 60  # characters, of at most four bytes each


def small_picture(content: bytes, name: str) -> str:
    """A picture file as a data URL of a PNG or JPEG file whose longer side is `SIDE` pixels at most.

    It is turned as its EXIF orientation says, and keeps what is transparent. Raises `UserError`, which calls it `name`.
    """
    image = decoded_picture(content, name, _MOST_PIXELS)
    lossy = image.format in _LOSSY
    try:
        image = upright(eight_bits(image) if image.mode != "1" else image)
        if image.mode not in _KEPT_MODES or (image.mode != "1" and "transparency" in image.info):
            image = image.convert("RGBA" if image.has_transparency_data else "RGB")
        if max(image.size) > SIDE:
            image = image.convert("L") if image.mode == "1" else image  # which Pillow would not antialias
            image.thumbnail((SIDE, SIDE))
        return _data_url(image, "JPEG" if lossy and image.mode in ("L", "RGB") else "PNG")
    except UnknownRange as error:
        raise UserError(f"the picture {name} cannot be used: {error}.") from None
    except Exception as error:  # damaged metadata, and modes that no such file can have
        raise UserError(f"the picture {name} is damaged ({error}). Replace or remove it.") from None


def pixels_url(pixels: np.ndarray[Any, Any]) -> str:
    """What the network sees, (C, H, W) uint8, as the data URL of a PNG file."""
    return _data_url(Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0)), "PNG")


def _data_url(image: Image.Image, kind: str) -> str:
    file = io.BytesIO()
    image.save(file, kind, quality=90)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(file.getvalue()).decode()}"


def zip_of_classes(names: Sequence[str], pictures: Sequence[Sequence[bytes]]) -> bytes:
    """A zip archive with a folder of picture files for each class, as `predict --support` takes it when unzipped.

    Folders are called as the classes are, with `_` for what a folder's name cannot hold.
    """
    file, taken = io.BytesIO(), set()
    with zipfile.ZipFile(file, "w") as archive:
        for name, files in zip(names, pictures, strict=True):
            folder = original = _folder_name(name)
            number = 1
            while folder.casefold() in taken:
                number += 1
                folder = f"{original} {number}"
            taken.add(folder.casefold())
            for index, content in enumerate(files, 1):
                kind = decoded_picture(content, f"{index} of {name}", SIDE**2).format
                ending = "jpg" if kind == "JPEG" else "png"
                archive.writestr(zipfile.ZipInfo(f"{folder}/{index}.{ending}"), content)
    return file.getvalue()


def _folder_name(name: str) -> str:
    text = unicodedata.normalize("NFC", name)[:_LONGEST_NAME]
    text = "".join("_" if c in '<>:"/\\|?*' or not c.isprintable() else c for c in text).strip(" .") or "_"
    return text if may_be_class(text) and text.split(".")[0].casefold() not in _TAKEN else f"{text}_"


def pictures_in_zip(content: bytes) -> list[dict[str, Any]]:
    """The `path` of each picture file in a zip archive, and the `picture` as `small_picture` gives it.

    Passed over is what `predict --support` passes over, and what macOS adds. Raises `UserError` where it is no archive,
    is damaged, or holds too much or no picture.
    """
    try:
        with open_zip(io.BufferedReader(io.BytesIO(content))) as archive:
            files = [info for info in archive.infolist() if not info.is_dir() and _counts(info.filename)]
            _check_sizes(files)
            return [
                {"path": info.filename, "picture": small_picture(read_entry(archive, info), info.filename)}
                for info in files
            ]
    except UserError:
        raise
    except Exception:  # damaged bytes make zipfile raise almost anything
        raise UserError("this is no zip archive that can be read. Drop one with a folder for each class.") from None


def _counts(path: str) -> bool:
    parts = PurePosixPath(path).parts
    return may_be_picture(parts[-1]) and all(map(may_be_class, parts[:-1])) and not parts[-1].startswith(".")


def _check_sizes(files: list[zipfile.ZipInfo]) -> None:
    if not files:
        raise UserError("the archive holds no pictures. Drop one with a folder of pictures for each class.")
    if len(files) > MOST_PICTURES:
        raise UserError(f"the archive holds {len(files)} files; the page takes {MOST_PICTURES}. Drop a smaller one.")
    if max(info.file_size for info in files) > _MOST_ENTRY or sum(info.file_size for info in files) > _MOST_UNPACKED:
        raise UserError(f"the archive unpacks to more than {_MOST_UNPACKED // 2**20} MiB. Drop a smaller one.")
