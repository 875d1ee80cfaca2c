"""The stream that few-shot tasks come from, on learn2learn's `Taskset`."""

from __future__ import annotations

import multiprocessing
import random
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, TensorDataset

from maml_l2l.config import Experiment
from maml_l2l.data.labelled_images import LabelledImages
from maml_l2l.data.splits import ClassSplit
from maml_l2l.system.learn2learn_import import KShots, MetaDataset, NWays, Taskset, samplers
from maml_l2l.tasks import augment as augmentation
from maml_l2l.tasks.batch import TaskBatch
from maml_l2l.tasks.members import members_of, servable

_sampling = threading.Lock()


class TaskStream:
    """An endless, random-access sequence of tasks: a pure function of (seed, split, index).

    Classes and images are drawn by learn2learn's `NWays` and `KShots`. These transforms only pick indices; a task's
    images are then gathered at once. With `rotate` it turns all images of a class by one multiple of 90 degrees, drawn
    for each class of each task (Santoro et al., 2016; Finn et al., 2017). With `shift` it moves each image by as many
    pixels at most, drawn for each image, down and across, as Santoro et al. do against overfitting. With `augment` each
    image is changed as `augment.augmented` does, at this strength.

    >>> import maml_l2l, torch
    >>> from maml_l2l.data.labelled_images import LabelledImages
    >>> pixels = torch.randint(256, (12, 1, 28, 28), dtype=torch.uint8)  # four images of each of three classes
    >>> images = LabelledImages(pixels, torch.arange(3).repeat_interleave(4), ("ant", "bee", "eel"))
    >>> sizes = {"ways": 2, "shots": 1, "queries": 3}
    >>> stream = maml_l2l.TaskStream(images, ["ant", "bee", "eel"], split="train", rotate=False, seed=0, **sizes)
    >>> tasks = stream.batch(start=0, count=8)
    >>> tasks.support.shape, tasks.query.shape
    (torch.Size([8, 2, 1, 28, 28]), torch.Size([8, 6, 1, 28, 28]))
    """

    def __init__(
        self,
        images: LabelledImages,
        classes: list[str],
        *,
        split: str,
        ways: int,
        shots: int,
        queries: int,
        rotate: bool,
        seed: int,
        shift: int = 0,
        augment: float = 0.0,
        drop_small: bool = False,
    ):
        """`classes` names the classes of `split`. Raises `UserError` where they cannot serve tasks of this size.

        drop_small: leave out classes with fewer images than `shots` + `queries`, and say so.
        """
        self.images, self.ways, self.shots, self.queries = images, ways, shots, queries
        self.rotate, self.shift, self.augment, self._key = rotate, shift, augment, f"{seed}/{split}"
        members = members_of(images, classes)
        members = servable(members, images.class_names, split, ways, shots, queries, drop_small)
        self._members = members
        dataset = MetaDataset(TensorDataset(images.pixels, images.labels), labels_to_indices=members)
        transforms = [NWays(dataset, ways), KShots(dataset, shots + queries)]
        self._taskset = Taskset(dataset, transforms, task_collate=self._collated)

    @property
    def class_names(self) -> list[str]:
        """The classes that tasks are drawn from."""
        return [self.images.class_names[label] for label in self._members]

    def batch(self, start: int, count: int) -> TaskBatch:
        """Tasks `start`, ..., `start + count - 1` of the stream, on the CPU, float32."""
        return self._tasks_of(*self.draw(start, count))

    def batches(self, starts: Sequence[int], count: int, device: torch.device, workers: int = 0) -> Iterator[TaskBatch]:
        """`batch(start, count)` on `device`, for each of `starts`.

        workers: processes that draw tasks ahead; 0: this one draws them, each batch when it is asked for.
        """
        forks = workers > 0 and "fork" in multiprocessing.get_all_start_methods()
        loader = DataLoader(
            _Draws(self, count),
            batch_size=None,
            sampler=starts,
            num_workers=workers,
            pin_memory=device.type == "cuda",
            multiprocessing_context="fork" if forks else None,
            worker_init_fn=_leave_signals_to_the_parent,
            generator=torch.Generator(),  # else it draws a number from the global one
        )
        for drawn in loader:
            yield self._tasks_of(*(tensor.to(device, non_blocking=True) for tensor in drawn))

    def draw(self, start: int, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Tasks `start`, ..., `start + count - 1`: images and the random numbers that augment them.

        (T, ways, shots + queries, C, H, W) uint8 and (T, ways, shots + queries, `augment.DRAWS`) float32, or empty.
        """
        tasks = [self._task(index) for index in range(start, start + count)]
        return torch.stack([pixels for pixels, _ in tasks]), torch.stack([draws for _, draws in tasks])

    def _tasks_of(self, pixels: torch.Tensor, draws: torch.Tensor) -> TaskBatch:
        """The tasks of what `draw` gave, where `pixels` lie."""
        images = pixels.float().div_(255)
        if self.augment:
            images = augmentation.augmented(images.flatten(0, 2), draws.flatten(0, 2), self.augment).view_as(images)
        return self.grouped(images)

    def grouped(self, images: torch.Tensor) -> TaskBatch:
        """images: (T, ways, shots + queries, ...), or what stands for them -> the tasks."""
        support, query = images.split([self.shots, self.queries], dim=2)
        labels = torch.arange(self.ways, device=images.device)
        return TaskBatch(
            support.flatten(1, 2),
            labels.repeat_interleave(self.shots).expand(len(images), -1),
            query.flatten(1, 2),
            labels.repeat_interleave(self.queries).expand(len(images), -1),
            self.ways,
            check=False,
        )

    @property
    def changes_images(self) -> bool:
        """Whether tasks hold other images than `images` has."""
        return bool(self.rotate or self.shift or self.augment)

    def indices(self, start: int, count: int) -> torch.Tensor:
        """(T, ways, shots + queries) int64: which of `images` the tasks hold."""
        return torch.stack([self._indices(self._generator(index)) for index in range(start, start + count)])

    def _generator(self, index: int) -> random.Random:
        """What all numbers of a task come from."""
        return random.Random(f"{self._key}/{index}")

    def _task(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Of one task: the images (ways, shots + queries, C, H, W) uint8, grouped by class, and what changes them."""
        generator = self._generator(index)
        pixels = self._drawn(generator)
        if self.shift:
            pixels = _shifted(pixels, self.shift, generator)
        if not self.augment:
            return pixels, torch.empty(0)
        draws = augmentation.draws(self.ways * (self.shots + self.queries), generator.getrandbits(63))
        return pixels, draws.view(*pixels.shape[:2], -1)

    def _collated(self, indices: list[int]) -> torch.Tensor:
        """(ways, shots + queries) int64: the indices of a task's images, which come grouped by class."""
        return torch.tensor(indices).view(self.ways, -1)

    def _drawn(self, generator: random.Random) -> torch.Tensor:
        """(ways, shots + queries, C, H, W): the images of a task, turned where classes are."""
        pixels = self.images.pixels[self._indices(generator)]
        if self.rotate:
            pixels = torch.stack([torch.rot90(of_class, generator.randrange(4), (-2, -1)) for of_class in pixels])
        return pixels

    def _indices(self, generator: random.Random) -> torch.Tensor:
        """(ways, shots + queries): the indices of a task's images."""
        with _sampling_from(generator):
            return self._taskset[0]


class _Draws(Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """What `stream.draw(start, count)` gives, by `start`."""

    def __init__(self, stream: TaskStream, count: int):
        self._stream, self._count = stream, count

    def __getitem__(self, start: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self._stream.draw(start, self._count)


def _leave_signals_to_the_parent(_worker: int) -> None:
    """A worker inherits what the parent does on signals; those that reach both are the parent's to act on."""
    for name in ("SIGINT", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def task_stream(
    experiment: Experiment,
    images: LabelledImages,
    split: ClassSplit,
    name: str,
    shift: int = 0,
    augment: float = 0.0,
    kind: type[TaskStream] = TaskStream,
) -> TaskStream:
    """The tasks of the split `name`, of the size that `experiment` says. shift, augment: see `TaskStream`."""
    data, sizes = experiment.data, experiment.task.model_dump()
    options: dict[str, Any] = {"rotate": data.rotate, "seed": experiment.run.seed, "shift": shift, "augment": augment}
    options["drop_small"] = data.drop_small_classes
    return kind(images, split[name], split=name, **sizes, **options)


@contextmanager
def _sampling_from(generator: random.Random) -> Iterator[None]:
    """Have learn2learn's samplers draw from `generator`, and not from Python's global `random`, which threads share."""
    with _sampling:
        usual, samplers.random = samplers.random, generator
        try:
            yield
        finally:
            samplers.random = usual


def _shifted(pixels: torch.Tensor, most: int, generator: random.Random) -> torch.Tensor:
    """(..., C, H, W): each image moved by -most, ..., most pixels down and across; its border fills what it leaves."""
    images = pixels.flatten(0, -4)
    down, across = torch.tensor([[generator.randint(-most, most) for _ in images] for _ in range(2)])
    height, width = images.shape[-2:]
    rows = (torch.arange(height) - down[:, None]).clamp(0, height - 1)
    columns = (torch.arange(width) - across[:, None]).clamp(0, width - 1)
    moved = images.gather(2, rows[:, None, :, None].expand_as(images))
    return moved.gather(3, columns[:, None, None, :].expand_as(images)).view_as(pixels)
