"""A typed batch of few-shot tasks: what engines take, whoever made it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import InitVar, dataclass, field
from typing import Any, NamedTuple

import torch

from maml_l2l.tasks.checks import check_alike, check_tensors, class_count, split_by_shots


class TaskSize(NamedTuple):
    """Support images, query images and ways (None: targets are no classes) of one task."""

    support: int
    query: int
    ways: int | None


@dataclass(frozen=True)
class TaskBatch:
    """T tasks, whose images come in any order and any number per class.

    support: (T, n_support, ...) floating point, images (C, H, W) in [0, 1] or inputs of another shape.
    query: (T, n_query, ...), of the same shape and dtype.
    support_labels, query_labels: (T, n_support) and (T, n_query) int64 in [0, ways); or, for a loss of one's own,
    targets (T, n_support, ...) and (T, n_query, ...) of any shape, such as the floats of a regression.
    ways: classes of each task, at most the outputs of the network's head; None: as many as the labels name, or of
    targets that are no classes, none.
    check: False leaves out the checks, for whoever knows the tensors; on a GPU they wait for it.

    Raises `UserError` where shapes, dtypes or devices do not fit together, a label is out of range, or a class has no
    support image.

    >>> import maml_l2l, torch
    >>> labels = torch.arange(5).expand(2, 5)
    >>> tasks = maml_l2l.TaskBatch(torch.rand(2, 5, 1, 28, 28), labels, torch.rand(2, 5, 1, 28, 28), labels, ways=5)
    >>> len(tasks), len(tasks[0])
    (2, 1)
    """

    support: torch.Tensor
    support_labels: torch.Tensor
    query: torch.Tensor
    query_labels: torch.Tensor
    ways: int | None = None
    sizes: tuple[TaskSize, ...] | None = field(default=None, repr=False)
    """Set by `stack` where the tasks are of unequal size: that of each. The tensors are then padded at their ends, with
    NaN and -1, so that whoever takes the padding for images gets no numbers out. `chunks` and `[...]` take it away."""
    check: InitVar[bool] = True

    def __post_init__(self, check: bool) -> None:
        if check and not torch.compiler.is_compiling():
            check_tensors(self._tensors())
            object.__setattr__(self, "ways", class_count(self.support_labels, self.query_labels, self.ways))

    @classmethod
    def of_task(
        cls,
        support: torch.Tensor,
        support_labels: torch.Tensor,
        query: torch.Tensor,
        query_labels: torch.Tensor,
        ways: int | None = None,
    ) -> TaskBatch:
        """One task of tensors without T: (n_support, ...), (n_support, ...), (n_query, ...), (n_query, ...)."""
        check_tensors((support, support_labels, query, query_labels), leading=())
        return cls(support[None], support_labels[None], query[None], query_labels[None], ways)

    @classmethod
    def stack(cls, tasks: Iterable[TaskBatch | tuple[torch.Tensor, ...]], ways: int | None = None) -> TaskBatch:
        """All of `tasks` in one batch, in order: batches, or single tasks as the tensors that `of_task` takes.

        They may be of unequal size. Engines work on neighbours of equal size at once, so order them by size.
        ways: of the single tasks, see `of_task`.
        Raises `UserError` where there are none, or they differ in the shape of an image, in dtype, in device, or in
        whether they have classes.
        """
        parts = [task if isinstance(task, TaskBatch) else _single(task, ways) for task in tasks]
        check_alike([(part._tensors(), part.ways) for part in parts])
        sizes = tuple(size for part in parts for size in part._size_of_each())
        most = [max(size.support for size in sizes), max(size.query for size in sizes)]
        columns = zip(*(part._tensors() for part in parts), strict=True)
        support, support_labels, query, query_labels = (
            torch.cat([_padded(tensor, n) for tensor in column])
            for column, n in zip(columns, (most[0], most[0], most[1], most[1]), strict=True)
        )
        highest = max((part.ways for part in parts if part.ways is not None), default=None)
        unequal = None if len(set(sizes)) == 1 else sizes
        return cls(support, support_labels, query, query_labels, highest, unequal, check=False)

    @classmethod
    def from_taskset(cls, taskset: Any, count: int, shots: int) -> TaskBatch:
        """`count` tasks that a learn2learn `Taskset` samples, on the CPU.

        Of each class the first `shots` images are the support set and the others the queries, so `KShots` draws
        `shots` + queries of them. The transforms end in `LoadData` and `RemapLabels`, as in learn2learn's examples.
        Like them it draws from Python's global `random`.
        Raises `UserError` where a class has no more than `shots` images, and where the tensors do not serve.
        """
        return cls.stack(split_by_shots(taskset.sample(), shots) for _ in range(count))

    def __len__(self) -> int:
        """Number of tasks T."""
        return self.support.shape[0]

    def __getitem__(self, index: int | slice) -> TaskBatch:
        """Some of the tasks; with an integer a batch of that one. Iterating gives one after another."""
        if isinstance(index, slice):
            return self._part(index)
        position = range(len(self))[index]  # an IndexError beyond the last ends an iteration
        return self._part(slice(position, position + 1))

    def chunks(self, size: int) -> Iterator[TaskBatch]:
        """The same tasks in order, at most `size` at a time, and at a time only tasks of one size, without padding."""
        end = 0
        for _, run in itertools.groupby(self._size_of_each()):
            start, end = end, end + len(list(run))
            for first in range(start, end, size):
                yield self._part(slice(first, min(first + size, end)))

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> TaskBatch:
        """The same tasks on `device`, images and floating-point targets as `dtype`."""
        return self._map(lambda tensor: tensor.to(device, dtype if tensor.is_floating_point() else None))

    def _tensors(self) -> tuple[torch.Tensor, ...]:
        return self.support, self.support_labels, self.query, self.query_labels

    def _map(self, function: Callable[[torch.Tensor], torch.Tensor]) -> TaskBatch:
        support, support_labels, query, query_labels = map(function, self._tensors())
        return TaskBatch(support, support_labels, query, query_labels, self.ways, self.sizes, check=False)

    def _size_of_each(self) -> tuple[TaskSize, ...]:
        if self.sizes is not None:
            return self.sizes
        return (TaskSize(self.support.shape[1], self.query.shape[1], self.ways),) * len(self)

    def _part(self, rows: slice) -> TaskBatch:
        """The tasks of these rows, without the padding that none of them needs."""
        support, support_labels, query, query_labels = (tensor[rows] for tensor in self._tensors())
        if self.sizes is None:
            return TaskBatch(support, support_labels, query, query_labels, self.ways, check=False)
        sizes = self.sizes[rows]
        n, m = max((size.support for size in sizes), default=0), max((size.query for size in sizes), default=0)
        ways = max((size.ways for size in sizes if size.ways is not None), default=self.ways)
        tensors = support[:, :n], support_labels[:, :n], query[:, :m], query_labels[:, :m]
        return TaskBatch(*tensors, ways, sizes if len(set(sizes)) > 1 else None, check=False)


def _single(task: tuple[torch.Tensor, ...], ways: int | None) -> TaskBatch:
    support, support_labels, query, query_labels = task
    return TaskBatch.of_task(support, support_labels, query, query_labels, ways)


def _padded(tensor: torch.Tensor, length: int) -> torch.Tensor:
    """tensor: (T, n, ...) -> (T, length, ...)."""
    padding = float("nan") if tensor.is_floating_point() else -1 if tensor.dtype.is_signed else 0
    rest = tensor.new_full((tensor.shape[0], length - tensor.shape[1], *tensor.shape[2:]), padding)
    return torch.cat([tensor, rest], dim=1)
