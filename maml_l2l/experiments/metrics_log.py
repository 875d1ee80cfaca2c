"""The metrics file of a run, and TensorBoard events."""

from __future__ import annotations

import contextlib
import json
import os
import warnings
from pathlib import Path

from maml_l2l.system.errors import UserError


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
            found = self._path.read_bytes()[:size] if size else b""
            self._file = open(self._path, "ab")  # noqa: SIM115, closed by close()
            self._file.truncate(found.rfind(b"\n") + 1)
        except OSError as error:
            raise self._unwritable(error) from None
        if len(found) < size:
            warnings.warn(
                f"{self._path} has lost its last {size - len(found)} bytes since the run was saved", stacklevel=2
            )

    def write(self, iteration: int, **values: float) -> None:
        """Append one line."""
        try:
            self._file.write(json.dumps({"iteration": iteration, **values}).encode() + b"\n")
        except OSError as error:
            raise self._unwritable(error) from None
        if self._writer is not None:
            for name, value in values.items():
                self._writer.add_scalar(name, value, iteration)

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
            self._writer.close()

    def _unwritable(self, error: OSError) -> UserError:
        return UserError(f"cannot write {self._path}: {error.strerror}. Free space or make the folder writable.")


def _summary_writer(folder: Path, purge_step: int):
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise UserError("run.tensorboard is true, but TensorBoard is not installed: pip install tensorboard.") from None
    return SummaryWriter(str(folder), purge_step=purge_step)
