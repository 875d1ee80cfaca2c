"""The formats of image files: which Pillow may open, and what it needs help with."""

from __future__ import annotations

import io
import os
import struct
import zlib
from typing import BinaryIO

from PIL import Image

# EPS is handed to Ghostscript, an interpreter of programs, and WMF to Windows. Of the others Pillow knows only names.
_NEVER = {"EPS", "WMF", "BUFR", "GRIB", "HDF5", "MPEG"}
# What phones write, whether or not there is a reader for it.
_PHONES = {".heic", ".heif", ".hif", ".avif"}

_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_PIXELS = {b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"}
_PNG_EXIF = b"eXIf"  # holds the orientation


def formats() -> list[str]:
    """All that Pillow reads, and what plugins have added so far, but what would run programs."""
    Image.init()
    return sorted(set(Image.OPEN) - _NEVER)


def is_picture_name(name: str) -> bool:
    """Whether `name` has the ending of a picture."""
    ending = os.path.splitext(name)[1].lower()
    kind = Image.registered_extensions().get(ending)
    return ending in _PHONES or (kind in Image.OPEN and kind not in _NEVER)


def foreign_format(file: BinaryIO) -> str | None:
    """HEIC or AVIF, whatever the ending of `file` is; None: neither. See ISO/IEC 14496-12 (2022), 4.3."""
    file.seek(0)
    size, kind = struct.unpack(">I4s", file.read(8).ljust(8, b"\0"))
    if kind != b"ftyp":
        return None
    content = file.read(min(max(size - 8, 0), 256))
    brands = {content[:4], *(content[at : at + 4] for at in range(8, len(content), 4))}
    if brands & {b"avif", b"avis"}:
        return "AVIF"
    heic = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1"}
    return "HEIC" if brands & heic else None


def add_heif_reader() -> bool:
    """Have Pillow read HEIC by pillow-heif; False where that is not installed. It is done when it is first needed."""
    try:
        from pillow_heif import register_heif_opener
    except ImportError:
        return False
    register_heif_opener()
    return True


def png_pixels(file: BinaryIO) -> io.BytesIO | None:
    """The PNG in `file` without its metadata, except for the orientation; None where it is no PNG, or a broken one.

    Pillow refuses pictures for metadata that are long or damaged. See the PNG specification (2003), 5.3.
    """
    file.seek(0)
    if file.read(8) != _PNG:
        return None
    kept = io.BytesIO()
    kept.write(_PNG)
    while len(head := file.read(8)) == 8:
        length, kind = struct.unpack(">I4s", head)
        if kind not in _PNG_PIXELS | {_PNG_EXIF}:
            file.seek(length + 4, os.SEEK_CUR)
            continue
        content, checksum = file.read(length), file.read(4)
        if kind == _PNG_EXIF:
            checksum = struct.pack(">I", zlib.crc32(kind + content))
        kept.write(head + content + checksum)
        if kind == b"IEND":
            kept.seek(0)
            return kept
    return None
