"""Fetching zip archives, and unpacking them so that neither a bad archive nor an interruption does harm."""

from __future__ import annotations

import contextvars
import hashlib
import http.client
import lzma
import os
import re
import stat
import threading
import time
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from concurrent import futures
from contextlib import ExitStack, contextmanager
from pathlib import Path

from maml_l2l.system.errors import UserError
from maml_l2l.system.files import open_regular, reason, temporary_folder
from maml_l2l.system.messages import progress_bar
from maml_l2l.system.zip_files import open_zip, read_entry

TIMEOUT_S = 20.0  # without a single byte
PATIENCE_S, SLOWEST = 60.0, 2**12  # seconds that a server may be slow in all, and bytes a second of one that is not
PAUSES_S = (1.0, 3.0)  # before the second and the third attempt
MAX_BYTES = 256 * 2**20  # of one archive, packed or unpacked: 20 times what Omniglot needs

_BLOCK = 2**16
_LONGEST = 100  # characters of what a server says
_PASSING_4XX = (408, 429)  # "request time-out" and "too many requests"; other 4xx answers would come again
_DAMAGE = (
    zipfile.BadZipFile,
    EOFError,
    ValueError,
    zlib.error,
    lzma.LZMAError,
    RuntimeError,  # zipfile's for an encrypted entry, and as NotImplementedError for an unknown compression
    OSError,  # bz2's for damaged contents, besides what the disk gives rise to
)


def fetch(url: str) -> bytes:
    """Return what stands at the http(s) address `url`, in as many attempts as `PAUSES_S` allows.

    An answer shorter than its Content-Length counts as a failed attempt.
    Raises `UserError` naming the address, the last failure and the number of attempts.
    """
    attempts = 0
    while True:
        attempts += 1
        try:
            return _read_url(url)
        except UserError:
            raise
        except (OSError, http.client.HTTPException, ValueError) as error:
            if attempts > len(PAUSES_S) or not _may_pass(error):
                reason = _reason(error)
                raise UserError(f"cannot download {url}: {reason} (attempts: {attempts})") from None
        time.sleep(PAUSES_S[attempts - 1])


def _may_pass(error: Exception) -> bool:
    if isinstance(error, urllib.error.HTTPError):
        return error.code >= 500 or error.code in _PASSING_4XX
    return not isinstance(error, ValueError)  # what urllib raises over a malformed address


def _reason(error: Exception) -> str:
    if isinstance(error, urllib.error.HTTPError):
        return f"the server answered {error.code} {str(error.reason)[:_LONGEST]}"
    if isinstance(error, TimeoutError):
        return f"no answer for {TIMEOUT_S:g} s"
    return str(getattr(error, "reason", error))[:_LONGEST] or type(error).__name__


def _read_url(url: str) -> bytes:
    """Raises almost any `OSError` where the address gives nothing, or too slowly.

    The socket's time-out starts anew with each byte, in headers too. So a thread reads, and is left to itself where
    that takes too long.
    """
    content, outcome, given_up = bytearray(), futures.Future[None](), threading.Event()

    def read() -> None:
        try:
            _read_into(content, url, given_up)
            outcome.set_result(None)
        except BaseException as error:  # it is raised again below
            outcome.set_exception(error)

    start = time.monotonic()
    # Whether bars are shown is a matter of the context, which a thread does not inherit.
    threading.Thread(target=contextvars.copy_context().run, args=[read], daemon=True).start()
    try:
        while not futures.wait([outcome], timeout=min(1.0, PATIENCE_S)).done:
            if time.monotonic() - start > PATIENCE_S + len(content) / SLOWEST:
                raise ConnectionError(f"it sends less than {SLOWEST} bytes a second")
    finally:
        given_up.set()
    outcome.result()
    return bytes(content)


def _read_into(content: bytearray, url: str, given_up: threading.Event) -> None:
    request = urllib.request.Request(url, headers={"User-Agent": "maml_l2l"})
    with _opener().open(request, timeout=TIMEOUT_S) as response:
        expected = response.length  # None where the server does not say
        name = url.rpartition("/")[2]
        with progress_bar(total=expected, description=name, unit="B", unit_scale=True) as bar:
            while not given_up.is_set() and (block := response.read1(_BLOCK)):
                content += block
                bar.update(len(block))
                if len(content) > MAX_BYTES:
                    raise UserError(f"{url} is larger than {MAX_BYTES} bytes. Check the address.")
    if expected is not None and len(content) != expected:
        raise ConnectionError(f"the connection ended after {len(content)} of {expected} bytes")


def _opener() -> urllib.request.OpenerDirector:
    """urllib's own, without its way to ftp and to files, where a server may send its readers."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler,
        urllib.request.UnknownHandler,
        urllib.request.HTTPHandler,
        urllib.request.HTTPSHandler,
        urllib.request.HTTPDefaultErrorHandler,
        urllib.request.HTTPRedirectHandler,
        urllib.request.HTTPErrorProcessor,
    ):
        opener.add_handler(handler())
    return opener


def md5_sum(content: bytes) -> str:
    """MD5 as 32 hexadecimal digits: against damage and mistaken files, not against an attacker."""
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def list_files(archive: Path) -> list[zipfile.ZipInfo]:
    """The files of a zip archive that may be unpacked, in its order.

    Left out are folders, links, macOS junk, and names that would land outside the folder of extraction.
    Raises `UserError` where `archive` is no whole zip file or declares more than `MAX_BYTES` of contents.
    """
    with _opened(archive) as file:
        infos = file.infolist()
    declared = sum(info.file_size for info in infos)
    if declared > MAX_BYTES:
        raise UserError(
            f"{archive} would unpack to {declared} bytes, at most {MAX_BYTES} are expected. "
            "It is not the archive it should be: use another source."
        )
    return [info for info in infos if _may_be_unpacked(info)]


def _may_be_unpacked(info: zipfile.ZipInfo) -> bool:
    parts = info.filename.split("/")
    is_link = stat.S_ISLNK(info.external_attr >> 16)
    is_junk = "__MACOSX" in parts or parts[-1] == ".DS_Store" or parts[-1].startswith("._")
    # An absolute name begins with an empty part, a folder's ends with one. A backslash or a colon means a folder or a
    # drive on Windows only; refused everywhere, so that an archive unpacks to the same files on every system.
    is_outside = any(part in ("", ".", "..") or re.search(r"[\\:]", part) for part in parts)
    return not (is_link or is_junk or is_outside)


def read_files(archive: Path, infos: Iterable[zipfile.ZipInfo]) -> Iterator[tuple[zipfile.ZipInfo, bytes]]:
    """Yield the files `infos` of `archive` with their contents; zipfile checks size and CRC-32 of each.

    Raises `UserError` where the archive is damaged or encrypted.
    """
    with _opened(archive) as file:
        for info in infos:
            try:
                content = read_entry(file, info)
            except _DAMAGE as error:
                raise _unreadable(archive, error) from None
            yield info, content


def is_whole(archive: Path) -> bool:
    """Whether `archive` is a zip archive that can be unpacked: whole, not encrypted, not too large."""
    try:
        with open_regular(archive) as raw, open_zip(raw) as file:
            return sum(info.file_size for info in file.infolist()) <= MAX_BYTES and file.testzip() is None
    except _DAMAGE:
        return False


@contextmanager
def _opened(archive: Path) -> Iterator[zipfile.ZipFile]:
    with ExitStack() as stack:
        try:
            file = stack.enter_context(open_zip(stack.enter_context(open_regular(archive))))
        except _DAMAGE as error:
            raise _unreadable(archive, error) from None
        yield file


def _unreadable(archive: Path, error: Exception) -> UserError:
    return UserError(
        f"{archive} cannot be read as a zip archive ({error}). It may be damaged, incomplete or encrypted: "
        "get it anew or use another source."
    )


def same_content(path: Path, info: zipfile.ZipInfo) -> bool:
    """Whether the file `path` has the size and the CRC-32 that the archive lists for it."""
    try:
        if path.stat().st_size != info.file_size:
            return False
        with open_regular(path) as file:
            return zlib.crc32(file.read()) == info.CRC
    except OSError:
        return False


def extract(archive: Path, infos: list[zipfile.ZipInfo], folder: Path) -> None:
    """Unpack the files `infos` of `archive` into `folder`, over what is there under the same names.

    All are unpacked into a temporary folder first: no half-written file ever stands under its final name, and
    a folder that does not exist yet appears with all its files at once.
    Raises `UserError` where the archive is damaged or the folder cannot be written.
    """
    try:
        with temporary_folder(folder, archive.name) as staged:
            bar = progress_bar(read_files(archive, infos), f"unpacking {archive.name}", total=len(infos))
            for info, content in bar:
                path = staged / info.filename
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
            for child in staged.iterdir():
                _move_in(child, folder / child.name)
    except OSError as error:
        raise UserError(
            f"cannot unpack {archive} into {folder}: {reason(error)}. "
            "Free space there or name another folder, then run the download again."
        ) from None


def _move_in(staged: Path, target: Path) -> None:
    """Move a file or a folder to `target`; a folder that is there already is kept and filled, a link to one is not."""
    if staged.is_dir() and target.is_symlink():
        raise UserError(f"{target} is a link, and nothing is written through links. Put a folder in its place.")
    try:
        os.replace(staged, target)
    except OSError:
        if not (staged.is_dir() and target.is_dir()):
            raise
        for child in staged.iterdir():
            _move_in(child, target / child.name)
