"""The streams of published protocols that draw classes in another way than Finn et al. (2017)."""

from __future__ import annotations

import logging
import random
from typing import Any

import torch

from maml_l2l.data.labelled_images import LabelledImages
from maml_l2l.data.omniglot import DRAWINGS
from maml_l2l.system.errors import UserError, listing
from maml_l2l.tasks.stream import TaskStream

_log = logging.getLogger(__name__)


class RotatedClasses(TaskStream):
    """Each class turned by 0, 90, 180 and 270 degrees is four classes, several of which may meet in one task.

    So have Snell et al. (2017) the classes of training and test; under `rotate` of `TaskStream` they do not meet.
    """

    def _drawn(self, generator: random.Random) -> torch.Tensor:
        members, count = list(self._members.values()), self.shots + self.queries
        drawn = (divmod(number, 4) for number in generator.sample(range(4 * len(members)), self.ways))
        return torch.stack(
            [
                torch.rot90(self.images.pixels[generator.sample(members[label], count)], turns, (-2, -1))
                for label, turns in drawn
            ]
        )


class WithinAlphabets(TaskStream):
    """Each task has its classes from one alphabet, and its drawings from one person per shot and per query.

    So have Lake et al. (2015): one person draws the support images, another one the queries. All alphabets are equally
    likely, whatever their size. The drawings of each class are those of the same `DRAWINGS` people, in their order.
    """

    def __init__(self, images: LabelledImages, classes: list[str], *, split: str, ways: int, **options: Any):
        """See `TaskStream`. Alphabets of fewer than `ways` of the `classes` are left out, which is said.

        Raises `UserError` where none is left, and where a class has fewer drawings or more.
        """
        alphabets: dict[str, list[str]] = {}
        for name in sorted(classes):
            alphabets.setdefault(name.rpartition("/")[0], []).append(name)
        small = [f"{alphabet} ({len(names)})" for alphabet, names in alphabets.items() if len(names) < ways]
        kept = {alphabet: names for alphabet, names in alphabets.items() if len(names) >= ways}
        if not kept:
            most = max(map(len, alphabets.values()), default=0)
            raise UserError(
                f"task.ways is {ways}, but no alphabet of the {split} classes has more than {most} characters. "
                "Lower task.ways (--n_way)."
            )
        if small:
            _log.info(f"alphabets of fewer than {ways} {split} characters are left out: {listing(small)}")
        sizes = dict(zip(images.class_names, images.class_sizes(), strict=True))
        for name in (name for names in kept.values() for name in names):
            if sizes[name] != DRAWINGS:
                raise UserError(
                    f"{name} has {sizes[name]} drawings, and who drew them is known where there are {DRAWINGS}. "
                    "Remove what is not of the data set, or use another protocol."
                )
        super().__init__(images, [c for names in kept.values() for c in names], split=split, ways=ways, **options)
        first = {images.class_names[label]: indices[0] for label, indices in self._members.items()}
        self._first_drawings = [[first[name] for name in names] for names in kept.values()]

    def _indices(self, generator: random.Random) -> torch.Tensor:
        characters = generator.sample(generator.choice(self._first_drawings), self.ways)
        drawers = generator.sample(range(DRAWINGS), self.shots + self.queries)
        return torch.tensor(characters)[:, None] + torch.tensor(drawers)


STREAMS: dict[str, type[TaskStream]] = {
    "together": TaskStream,
    "rotated": RotatedClasses,
    "alphabet": WithinAlphabets,
}
