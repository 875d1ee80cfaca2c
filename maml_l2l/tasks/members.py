"""The images of the classes that tasks are drawn from, and whether they suffice."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch

from maml_l2l.data.labelled_images import LabelledImages
from maml_l2l.system.errors import UserError, listing

_log = logging.getLogger(__name__)


def members_of(images: LabelledImages, classes: list[str]) -> dict[int, list[int]]:
    """The indices of the images of each named class that has some. Raises `UserError` where there is no such class."""
    if isinstance(classes, str):
        raise UserError(f"classes: expected a list of names, such as [{classes!r}], found {classes!r}.")
    label_of = {name: label for label, name in enumerate(images.class_names)}
    if unknown := sorted(set(classes) - label_of.keys()):
        raise UserError(f"classes: there are no images of {listing(unknown)}. Known are {listing(images.class_names)}.")
    ends = torch.tensor(images.class_sizes()).cumsum(0).tolist()
    starts = [0, *ends]
    members = {label: list(range(starts[label], ends[label])) for label in sorted(label_of[name] for name in classes)}
    return {label: indices for label, indices in members.items() if indices}


def servable(
    members: dict[int, list[int]],
    class_names: Sequence[str],
    split: str,
    ways: int,
    shots: int,
    queries: int,
    drop_small: bool,
) -> dict[int, list[int]]:
    """`members`, less the classes that are too small. Raises `UserError` where they do not serve, or may not go."""
    small = [label for label, indices in members.items() if len(indices) < shots + queries]
    if small:
        counts = listing([f"{class_names[label]} ({len(members[label])})" for label in small])
        too_small = f"{len(small)} of the {len(members)} classes of the {split} split hold fewer images: {counts}"
        needed = f"task.shots + task.queries is {shots} + {queries} = {shots + queries}"
        if not drop_small:
            raise UserError(
                f"{needed}, but {too_small}. Lower task.shots or task.queries, add images, or drop these classes with "
                "data.drop_small_classes: true."
            )
        _log.info(f"{needed}, so data.drop_small_classes drops classes: {too_small}")
        members = {label: indices for label, indices in members.items() if label not in small}
    if ways > len(members):
        raise UserError(
            f"task.ways is {ways}, but the {split} split holds {len(members)} of the {len(class_names)} classes. "
            "Lower task.ways, add classes, or give that split more of them (of a folder: data.val_fraction, "
            "data.test_fraction). To name pictures of a few classes without a training: maml_l2l.predict."
        )
    return members
