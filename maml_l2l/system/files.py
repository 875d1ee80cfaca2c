"""Reading files that may be anything, and writing them so that a half-written one never stands under its final name."""

from __future__ import annotations

import errno
import glob
import io
import json
import os
import secrets
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from maml_l2l.system.errors import UserError

try:
    import fcntl
except ImportError:  # Windows, where leftovers of killed processes stay
    fcntl = None  # type: ignore[assignment]

_BINARY = getattr(os, "O_BINARY", 0)  # without it Windows changes the ends of lines
_CAREFUL = os.O_RDONLY | _BINARY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0)
_NAME_PART = 40  # characters of its final name in the name of a temporary file, so that long names stay possible


def user_path(path: str | os.PathLike[str]) -> Path:
    """`path`; `~` at its beginning is the home folder, also where no shell replaces it, as in `--path=~/d`."""
    return Path(os.path.expanduser(path))


def reason(error: OSError) -> str:
    """What the system says is wrong, in a few words."""
    return str(error.strerror or error)


def open_regular(path: str | Path) -> io.BufferedReader:
    """`open(path, "rb")` of a regular file, or of a link to one.

    Raises `OSError` for anything else: reading a pipe or a device may take for ever, and opening one may have effects.
    """
    check_regular(os.stat(path), path)
    descriptor = os.open(path, _CAREFUL)
    try:
        check_regular(os.fstat(descriptor), path)  # it may have been replaced in between
    except OSError:
        os.close(descriptor)
        raise
    return os.fdopen(descriptor, "rb")


def check_regular(status: os.stat_result, path: str | Path) -> None:
    """Raise `OSError` where `status` is not that of a regular file."""
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, "it is a folder", str(path))
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "it is a pipe, a device or a socket, and no regular file", str(path))


def make_folder(path: Path) -> Path:
    """Create the folder `path` and its parents.

    Raises `UserError` where that cannot be done, and for `~` where there is no home folder.
    """
    if path.parts[:1] == ("~",):
        raise UserError(f"cannot create the folder {path}: there is no home folder that ~ stands for. Name it in full.")
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot create the folder {path}: {reason(error)}. Name one that can be written.") from None
    return path


def make_folder_in(parent: Path, name: str) -> Path:
    """Create the folder `name` in `parent`, which is created, too.

    Raises `UserError` where that cannot be done, and where a link stands there: what is written would land outside.
    """
    path = make_folder(parent) / name
    if path.is_symlink():
        raise UserError(f"{path} is a link, and nothing is written through links. Put a folder in its place.")
    return make_folder(path)


def check_outputs(outputs: Iterable[str | Path | None], inputs: Iterable[str | Path] = ()) -> None:
    """Raise `UserError` where one of `outputs`, files that are to be written, cannot be, or would destroy what is read.

    inputs: files, and folders of files. Folders of `outputs` are created; what stands there is left as it is.
    """
    named = [Path(output) for output in outputs if output is not None]
    for number, output in enumerate(named):
        make_folder(output.parent)
        check_writable(output)
        if any(_same_place(output, other) for other in named[:number]):
            raise UserError(f"{output} is to be written twice. Name two files.")
        for source in map(Path, inputs):
            inside = output.exists() and source.is_dir() and source.resolve() in output.resolve().parents
            if inside or _same_place(output, source):
                raise UserError(f"cannot write {output}: it is read, and would be lost. Name another file.")


def _same_place(one: Path, other: Path) -> bool:
    if one.exists() and other.exists():
        return one.samefile(other)
    return one.name == other.name and one.parent.resolve() == other.parent.resolve()


def check_writable(path: Path) -> None:
    """Raise `UserError` where `write_atomically` could not write `path`; what stands there is left as it is."""
    try:
        _check_target(path)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise UserError(f"cannot write {path}: {reason(error)}. Name a file that can be written.") from None


def write_atomically(path: Path, write: Callable[[BinaryIO], object], previous: Path | None = None) -> None:
    """Call `write(file)` on a temporary file beside `path`, flush it to the disk, then rename it to `path`.

    Whatever happens on the way, `path` holds either its old contents or all of the new ones; with `previous`, the old
    contents move there, and for a moment between the two renames stand there only. The rights are those of the old
    file, or for a new one what the umask leaves. A link is replaced, its target stays.
    Raises `UserError` where `path` is no regular file, the folder cannot be written or the disk is full.
    """
    try:
        rights = _check_target(path)
        with _temporary_file(path) as (descriptor, temporary):
            if rights is not None and hasattr(os, "fchmod"):
                os.fchmod(descriptor, rights)
            with os.fdopen(descriptor, "wb", closefd=False) as file:
                write(file)
                file.flush()
                os.fsync(descriptor)
            if previous is not None and path.exists():
                os.replace(path, previous)
            os.replace(temporary, path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {reason(error)}. What stood there before is untouched.") from None


def _check_target(path: Path) -> int | None:
    """The rights of the file `path`, None where there is none. Raises `OSError` where it is no regular file."""
    try:
        status = os.stat(path)
    except FileNotFoundError:  # or a link that leads nowhere
        return None
    check_regular(status, path)
    return None if path.is_symlink() else stat.S_IMODE(status.st_mode)


@contextmanager
def _temporary_file(path: Path) -> Iterator[tuple[int, Path]]:
    """A new file beside `path`, open to be written, and its own path; it is gone afterwards, unless renamed."""
    _remove_leftovers(path)
    claimed = False
    while not claimed:  # else another process took it for a leftover, in the moment before it was claimed
        temporary = _temporary_name(path)
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _BINARY, 0o666)
        claimed = _claimed(descriptor)
        if not claimed:
            os.close(descriptor)
    try:
        yield descriptor, temporary
    finally:
        os.close(descriptor)
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


@contextmanager
def temporary_folder(parent: Path, name: str) -> Iterator[Path]:
    """A new folder in `parent`, gone afterwards; `name` is part of its own. Those of killed processes are removed."""
    _remove_leftovers(parent / name)
    folder = _temporary_name(parent / name)
    folder.mkdir(mode=0o700)
    descriptor = os.open(folder, os.O_RDONLY) if fcntl else None
    if descriptor is not None:
        _claimed(descriptor)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if descriptor is not None:
            os.close(descriptor)


def _temporary_name(path: Path) -> Path:
    return path.with_name(f".{path.name[-_NAME_PART:]}.{secrets.token_hex(4)}.tmp")


def _claimed(descriptor: int) -> bool:
    """Hold what is open until it is closed, or this process ends; False where another one holds or has removed it."""
    if fcntl is None:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        return True
    return os.fstat(descriptor).st_nlink > 0


def _remove_leftovers(path: Path) -> None:
    """Remove what killed processes left behind while they wrote `path`; nobody claims it any more."""
    if fcntl is None:
        return
    pattern = f".{glob.escape(path.name[-_NAME_PART:])}.{'[0-9a-f]' * 8}.tmp"
    for leftover in path.parent.glob(pattern):
        with suppress(OSError):
            descriptor = os.open(leftover, _CAREFUL | os.O_NOFOLLOW)
            try:
                kind = os.fstat(descriptor).st_mode
                if (stat.S_ISREG(kind) or stat.S_ISDIR(kind)) and _is_dead(descriptor):
                    shutil.rmtree(leftover) if stat.S_ISDIR(kind) else leftover.unlink()
            finally:
                os.close(descriptor)


def _is_dead(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # held, or a file system without locks, where nobody knows
        return False
    return True


def write_json(path: str | Path, content: dict | list) -> None:
    """Write `content` as indented JSON, atomically; the folder is created where it is absent."""
    make_folder(Path(path).parent)
    write_atomically(Path(path), lambda file: file.write((json.dumps(content, indent=2) + "\n").encode()))
