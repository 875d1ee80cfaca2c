"""The networks of a run's best validations, in files that are right whenever a process is killed."""

from __future__ import annotations

import dataclasses
import math
import os
from pathlib import Path

from maml_l2l.checkpoints.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from maml_l2l.experiments.resuming import set_aside
from maml_l2l.system.errors import UserError
from maml_l2l.system.files import write_atomically
from maml_l2l.system.messages import warn_user
from maml_l2l.system.run_files import best_name

_Validation = tuple[float, int]  # accuracy in percent and meta-iteration


class BestCheckpoints:
    """`best.pth`, `best_2.pth`, ...: those of the highest validation accuracy, the best first; of equal ones the first.

    The files are all the state there is: each says its accuracy and its meta-iteration. A better one moves those behind
    it by one place, the last first, so a kill leaves one of them twice and none but the last is lost, which comes again
    where a resumed run comes to the validation that pushed it out. What such a run had done beyond its checkpoint
    stays, as it will do the same again. `best.pth` is whole at any moment.
    """

    def __init__(self, folder: Path, count: int):
        self._paths = [folder / best_name(rank) for rank in range(1, count + 1)]
        self._kept: list[_Validation] = []

    @property
    def accuracy(self) -> float | None:
        """That of `best.pth` in percent; None where it is of no validation, or there is none."""
        return next((accuracy for accuracy, _ in self._kept if accuracy > -math.inf), None)

    def add(self, checkpoint: Checkpoint, accuracy: float) -> bool:
        """Keep `checkpoint` where it is one of the best; return whether `best.pth` is another now."""
        new = accuracy, checkpoint.iteration
        self._kept = [kept for kept in self._kept if kept[0] > -math.inf]
        rank = sum(_order(kept) < _order(new) for kept in self._kept)
        if new in self._kept or rank == len(self._paths):
            return False
        self._kept = [*self._kept[:rank], new, *self._kept[rank:]][: len(self._paths)]
        for place in range(len(self._kept) - 1, rank, -1):
            _copy(self._paths[place - 1], self._paths[place])
        save_checkpoint(dataclasses.replace(checkpoint, best_accuracy=accuracy), self._paths[rank])
        return rank == 0

    def find(self, resumed: Checkpoint) -> bool:
        """Take up the files of the run that goes on from `resumed`; return whether `best.pth` is what it should be.

        Damaged ones are set aside. Where `best.pth` is gone or damaged, the next one takes its place, or else
        `resumed`, until a validation. Both are said.
        """
        found: dict[_Validation, Path] = {}
        problem = None
        for path in self._paths:
            try:
                checkpoint = load_checkpoint(path)
            except UserError as error:
                if path == self._paths[0] and resumed.best_accuracy is not None:
                    problem = str(error)
                elif os.path.lexists(path):
                    warn_user(f"{error} It is left out of the best ones")
                if os.path.lexists(path):
                    set_aside(path)
                continue
            accuracy = -math.inf if checkpoint.best_accuracy is None else checkpoint.best_accuracy
            found.setdefault((accuracy, checkpoint.iteration), path)
        self._kept = sorted(found, key=_order)
        self._close_ranks(found)
        if problem is not None:
            self._replace_best(problem, resumed)
        return problem is None

    def _close_ranks(self, found: dict[_Validation, Path]) -> None:
        """Have the files stand in the order of `_kept`, none of them twice: a kill may have left gaps."""
        contents = {kept: found[kept].read_bytes() for kept in self._kept}
        for path, kept in zip(self._paths, self._kept, strict=False):
            if found[kept] != path:
                _write(path, contents[kept])
        for path in self._paths[len(self._kept) :]:
            path.unlink(missing_ok=True)

    def _replace_best(self, problem: str, resumed: Checkpoint) -> None:
        if self._kept:
            stands_in = f"The weights of meta-iteration {self._kept[0][1]}, the next best, take its place"
        else:
            slim = dataclasses.replace(resumed, optimizer=None, averaged=None, best_accuracy=None)
            save_checkpoint(slim, self._paths[0])
            self._kept = [(-math.inf, resumed.iteration)]
            stands_in = f"The weights of meta-iteration {resumed.iteration} stand in for it"
        warn_user(f"{problem} {stands_in}")


def _order(validation: _Validation) -> tuple[float, int]:
    accuracy, iteration = validation
    return -accuracy, iteration


def _copy(source: Path, target: Path) -> None:
    _write(target, source.read_bytes())


def _write(path: Path, content: bytes) -> None:
    write_atomically(path, lambda file: file.write(content))
