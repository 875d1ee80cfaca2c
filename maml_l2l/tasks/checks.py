"""What `TaskBatch` refuses, with a message for whoever made the tensors."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral
from typing import Any

import torch

from maml_l2l.system.errors import UserError

NAMES = ("support", "support_labels", "query", "query_labels")
Tensors = Sequence[torch.Tensor]
_NUMBER_FROM_0 = "Number the classes of each task from 0, as learn2learn's RemapLabels does."


def check_tensors(tensors: Tensors, leading: tuple[str, ...] = ("T",)) -> None:
    """Raise `UserError` where shapes, dtypes or devices of `NAMES` do not fit together. No value is looked at.

    leading: the dimensions before that of the images.
    """
    for name, tensor in zip(NAMES, tensors, strict=True):
        if not isinstance(tensor, torch.Tensor):
            raise UserError(f"{name}: expected a tensor, found {type(tensor).__name__}. torch.as_tensor makes one.")
        if tensor.ndim < len(leading) + 1 or 0 in tensor.shape[: len(leading) + 1]:
            raise UserError(
                f"{name}: expected the shape ({', '.join((*leading, 'n', '...'))}) of one image or more, found "
                f"{tuple(tensor.shape)}."
            )
    support, support_labels, query, query_labels = tensors
    for name, images in (("support", support), ("query", query)):
        if not images.is_floating_point():
            remedy = " Divide by 255, as in images / 255." if images.dtype == torch.uint8 else ""
            raise UserError(f"{name}: expected floating-point images, found {_dtype(images)}.{remedy}")
    beyond = len(leading) + 1  # the dimensions of one image or target
    if leading and len({tensor.shape[0] for tensor in tensors}) > 1:
        raise UserError(f"expected as many tasks in each tensor, found {_shapes(tensors)}.")
    for images, labels in ((support, support_labels), (query, query_labels)):
        if images.shape[:beyond] != labels.shape[:beyond]:
            raise UserError(f"expected a label for each image, found {_shapes(tensors)}.")
    for one, other, kind in ((support, query, "images"), (support_labels, query_labels, "labels")):
        if one.shape[beyond:] != other.shape[beyond:]:
            raise UserError(f"expected {kind} of one shape in support and query, found {_shapes(tensors)}.")
        if one.dtype != other.dtype:
            raise UserError(f"expected {kind} of one dtype, found {_dtype(one)} in support, {_dtype(other)} in query.")
    if len(devices := {str(tensor.device) for tensor in tensors}) > 1:
        raise UserError(f"expected all tensors on one device, found {' and '.join(sorted(devices))}.")


def class_count(support_labels: torch.Tensor, query_labels: torch.Tensor, ways: int | None) -> int | None:
    """`ways`, or where it is None the number of classes that the labels name; None of targets that are no classes.

    support_labels: (T, n_support, ...), query_labels: (T, n_query, ...).
    Raises `UserError` where they are no class labels though `ways` is given, where one is out of range, or where a
    class has no support image.
    """
    targets = support_labels.is_floating_point() or support_labels.is_complex() or support_labels.ndim != 2
    if ways is None and targets:
        return None
    if targets or support_labels.dtype != torch.int64:
        raise UserError(
            f"labels: expected int64 of the shape (T, n), found {_dtype(support_labels)} of the shape "
            f"{tuple(support_labels.shape)}. labels.long() makes int64; leave ways out for targets of another loss."
        )
    if ways is None:
        ways = max(1, int(support_labels.max()) + 1, int(query_labels.max()) + 1)
    elif not isinstance(ways, Integral) or ways < 1:
        raise UserError(f"ways: expected a number of classes, found {ways!r}.")
    for name, labels in (("support_labels", support_labels), ("query_labels", query_labels)):
        wrong = (labels < 0) | (labels >= ways)
        if wrong.any():
            task = int(wrong.any(1).nonzero()[0])
            found = sorted(set(labels[task][wrong[task]].tolist()))
            raise UserError(
                f"{name}: expected 0 to {ways - 1} for {ways} ways, found {found[0]} in task {task}. {_NUMBER_FROM_0}"
            )
    _check_support(support_labels, ways)
    return int(ways)


def _check_support(labels: torch.Tensor, ways: int) -> None:
    """labels: (T, n_support), in range. Raises `UserError` where a class of a task has no image."""
    remedy = f"Give each class one or more. {_NUMBER_FROM_0}"
    if ways > labels.shape[1]:
        raise UserError(f"support_labels: {labels.shape[1]} images are too few for {ways} ways. {remedy}")
    present = torch.zeros(len(labels), ways, dtype=torch.bool, device=labels.device).scatter_(1, labels, True)
    if not present.all():
        task, label = (~present).nonzero()[0].tolist()
        raise UserError(f"support_labels: task {task} has no image of class {label} of its {ways} ways. {remedy}")


def check_alike(parts: Sequence[tuple[Tensors, int | None]]) -> None:
    """Raise `UserError` where batches cannot be one batch. parts: the tensors and ways of each."""
    if not parts:
        raise UserError("there are no tasks to stack. Give one or more.")
    kinds = [_kind(*part) for part in parts]
    for index, kind in enumerate(kinds):
        if kind != kinds[0]:
            raise UserError(f"the tasks of a batch are of one kind; found {kinds[0]} first, and at {index} {kind}.")


def _kind(tensors: Tensors, ways: int | None) -> str:
    images, labels = (f"{tuple(tensor.shape[2:])} {_dtype(tensor)}" for tensor in tensors[:2])
    return f"images {images} with {'targets' if ways is None else 'class labels'} {labels} on {tensors[0].device}"


def split_by_shots(task: Sequence[Any], shots: int) -> tuple[torch.Tensor, ...]:
    """The four tensors of `task`, images (n, ...) and labels (n,): the first `shots` of each class are its support.

    Raises `UserError` where a class has no more images than that.
    """
    kinds = [type(part).__name__ for part in task]
    if kinds != ["Tensor", "Tensor"] or task[1].ndim != 1 or len(task[0]) != len(task[1]):
        raise UserError(
            f"expected tasks of two tensors, images (n, ...) and labels (n,), found {', '.join(kinds)}. "
            "End the Taskset's transforms in LoadData and RemapLabels."
        )
    images, labels = task
    of_label = labels == labels.unique()[:, None]  # (classes, n)
    count = of_label.sum(1).min().item()
    if not 1 <= shots < count:
        raise UserError(
            f"shots: expected 1 to {count - 1}, because a class of the task has {count} images and a query is left of "
            f"each, found {shots}. KShots draws shots + queries."
        )
    is_support = (of_label & (of_label.cumsum(1) <= shots)).any(0)
    return images[is_support], labels[is_support], images[~is_support], labels[~is_support]


def _dtype(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _shapes(tensors: Tensors) -> str:
    return ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in zip(NAMES, tensors, strict=True))
