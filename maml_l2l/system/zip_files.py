"""Opening zip archives, whoever sent them."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager

MAX_AT_ONCE = 2**24  # bytes


@contextmanager
def open_zip(file: io.BufferedReader) -> Iterator[zipfile.ZipFile]:
    """The zip archive in `file`, with a list of entries of at most `MAX_AT_ONCE` bytes.

    Raises almost any error where it is damaged.
    """
    bounded = _Bounded(file.raw)
    try:
        with zipfile.ZipFile(bounded) as archive:
            yield archive
    finally:
        bounded.detach()  # `file` is the caller's to close


class _Bounded(io.BufferedReader):
    """A file of which only `MAX_AT_ONCE` bytes can be read at once: zipfile takes as many as an archive tells it to."""

    def read(self, size: int | None = -1, /) -> bytes:
        content = super().read(size if size is not None and 0 <= size <= MAX_AT_ONCE else MAX_AT_ONCE + 1)
        if len(content) > MAX_AT_ONCE:
            raise ValueError("it asks to read too much at once")
        return content


def read_entry(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
    """The content of an entry; its size and CRC-32 are checked. Raises almost any error where it is damaged."""
    with archive.open(info) as file:
        content = b"".join(iter(lambda: file.read(2**20), b""))
    if len(content) != info.file_size:
        raise zipfile.BadZipFile("an entry is shorter than it says")
    return content
