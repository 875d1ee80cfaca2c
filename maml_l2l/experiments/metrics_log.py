"""The metrics file of a run, and TensorBoard events."""

from __future__ import annotations

import contextlib
import errno
import json
import os
from pathlib import Path

from maml_l2l.system.errors import UserError
from maml_l2l.system.files import check_regular, make_folder_in, reason
from maml_l2l.system.messages import warn_user

# A pipe without a reader is not waited for; a link is an error, as what it leads to would be cut.
_NO_LINK = os.O_RDWR | os.O_CREAT | sum(getattr(os, name, 0) for name in ("O_NOFOLLOW", "O_NONBLOCK", "O_BINARY"))


class MetricsLog:
    """`metrics.jsonl`, one JSON object a line, and on request the same figures as TensorBoard events.

    Training lines hold `iteration`, `loss`, `accuracy` (percent, means over the meta-batch) and `meta_lr`; validation
    lines `iteration`, `val_loss`, `val_accuracy` and `val_ci95`. No line holds a time: equal runs write equal files.
    """

    def __init__(self, folder: Path, tensorboard: bool, done: int = 0, size: int = 0):
        """Go on after `done` meta-iterations, when the file had `size` bytes: what was written later is cut off."""
        self._path = folder / "metrics.jsonl"
        self._writer = _summary_writer(folder / "tensorboard", done + 1) if tensorboard else None
        try:
            self._file = os.fdopen(os.open(self._path, _NO_LINK, 0o666), "r+b")
            status = os.fstat(self._file.fileno())
            check_regular(status, self._path)
            found = self._file.read(min(size, status.st_size))
            self._file.seek(found.rfind(b"\n") + 1)
            self._file.truncate()
        except OSError as error:
            raise self._unwritable(error) from None
        if len(found) < size:
            warn_user(f"{self._path} has lost its last {size - len(found)} bytes since the run was saved")

    def write(self, iteration: int, **values: float) -> None:
        """Append one line."""
        try:
            self._file.write(json.dumps({"iteration": iteration, **values}).encode() + b"\n")
        except OSError as error:
            raise self._unwritable(error) from None
        if self._writer is not None:
            try:
                for name, value in values.items():
                    self._writer.add_scalar(name, value, iteration)
            except Exception as error:  # of a thread of TensorBoard's: no result depends on it
                warn_user(f"no more TensorBoard events are written: {error}")
                self._writer = None

    def sync(self) -> int:
        """See everything onto the disk; return the number of bytes that stand there."""
        try:
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise self._unwritable(error) from None
        return self._file.tell()

    def close(self) -> None:
        """Flush and close. What a full disk keeps from being written is beyond the last checkpoint."""
        with contextlib.suppress(OSError):
            self._file.close()
        if self._writer is not None:
            with contextlib.suppress(OSError):
                self._writer.close()

    def _unwritable(self, error: OSError) -> UserError:
        if error.errno == errno.ELOOP:
            return UserError(f"{self._path} is a link, and nothing is written through links. Move it away.")
        return UserError(f"cannot write {self._path}: {reason(error)}. Free space or make the folder writable.")


def check_tensorboard() -> None:
    """Raise `UserError` where TensorBoard is not installed."""
    try:
        import torch.utils.tensorboard  # noqa: F401
    except ImportError:
        raise UserError("run.tensorboard is true, but TensorBoard is not installed: pip install tensorboard.") from None


def _summary_writer(folder: Path, purge_step: int):
    check_tensorboard()
    from torch.utils.tensorboard import SummaryWriter

    try:
        return SummaryWriter(str(make_folder_in(folder.parent, folder.name)), purge_step=purge_step)
    except OSError as error:
        raise UserError(f"cannot write TensorBoard events to {folder}: {reason(error)}. Move it away.") from None
