"""How long drawing a task takes: this package against learn2learn's `LoadData` and `RandomClassRotation`.

    python -m benchmarks.tasks [--json FILE] [--plot FILE]

Both draw from the same images in memory. The share of a training step is measured beside the meta-gradient of the
default engine on the same tasks.
"""

from __future__ import annotations

import statistics

import torch
from torch.utils.data import TensorDataset

from benchmarks import common
from benchmarks.engines import SETTINGS
from maml_l2l.algorithms import build_learner
from maml_l2l.backbones import backbone_arguments
from maml_l2l.config import Algorithm, Model
from maml_l2l.data.labelled_images import LabelledImages
from maml_l2l.system.learn2learn_import import learn2learn
from maml_l2l.system.machine import describe, machine
from maml_l2l.tasks.stream import TaskStream

REPEATS = 15


def omniglot_sized_images() -> LabelledImages:
    """As many classes and images as Omniglot's training split; the pixels do not matter for the time."""
    pixels = torch.randint(0, 256, (1100 * 20, 1, 28, 28), dtype=torch.uint8)
    return LabelledImages(pixels, torch.arange(1100).repeat_interleave(20), tuple(f"c{i:04d}" for i in range(1100)))


def learn2learn_tasks(images: LabelledImages, ways: int, images_a_class: int) -> learn2learn.data.Taskset:
    """The task set of learn2learn's own Omniglot example, on images that are decoded already."""
    dataset = TensorDataset(images.pixels.float() / 255, images.labels)
    members = {label: list(range(20 * label, 20 * label + 20)) for label in range(1100)}
    dataset = learn2learn.data.MetaDataset(dataset, labels_to_indices=members)
    transforms = learn2learn.data.transforms
    return learn2learn.data.Taskset(
        dataset,
        [
            transforms.NWays(dataset, ways),
            transforms.KShots(dataset, images_a_class),
            transforms.LoadData(dataset),
            transforms.RemapLabels(dataset),
            transforms.ConsecutiveLabels(dataset),
            learn2learn.vision.transforms.RandomClassRotation(dataset, [0.0, 90.0, 180.0, 270.0]),
        ],
    )


def measure(images: LabelledImages, setting: str) -> dict:
    """Medians over interleaved repetitions, in ms."""
    size = SETTINGS[setting]
    sizes, count = {"ways": size.ways, "shots": size.shots, "queries": size.queries}, size.tasks
    stream = TaskStream(images, list(images.class_names), split="train", rotate=True, seed=0, **sizes)
    theirs = learn2learn_tasks(images, size.ways, size.shots + size.queries)
    learner = build_learner(Algorithm(), backbone_arguments(Model(), size.ways, channels=1, image_size=28))
    batch = stream.batch(0, count)
    times: dict[str, list[float]] = {"ours": [], "learn2learn": [], "step": []}
    for repeat in range(REPEATS):
        times["ours"].append(common.milliseconds(lambda start=repeat * count: stream.batch(start, count)) / count)
        times["learn2learn"].append(common.milliseconds(lambda: theirs[0]))
        if repeat < 5:
            times["step"].append(common.milliseconds(lambda: learner.meta_gradient(batch, size.steps)))
    ours, other, step = (statistics.median(values) for values in times.values())
    share = 100 * ours * count / (ours * count + step)
    return {"setting": setting, "ours_ms": ours, "learn2learn_ms": other, "step_ms": step, "sampling_share": share}


def plot(rows: list[dict], path: str) -> None:
    """Bars of ms per task, on a logarithmic axis."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axes = figure.subplots()
    for offset, key, label in ((-0.2, "ours_ms", "maml_l2l"), (0.2, "learn2learn_ms", "learn2learn")):
        bars = axes.bar([i + offset for i in range(len(rows))], [row[key] for row in rows], width=0.4, label=label)
        axes.bar_label(bars, fmt="%.2f", fontsize=8)
    axes.set_xticks(range(len(rows)), [row["setting"] for row in rows])
    axes.set(ylabel="time to draw one task (ms)", yscale="log", title="Sampling tasks from 22,000 images in memory")
    axes.legend()
    figure.savefig(path, dpi=150)


def main() -> None:
    """Measure, print, write."""
    arguments = common.parser(
        "Time to draw one task, against learn2learn's LoadData + RandomClassRotation."
    ).parse_args()
    found = machine()
    images = omniglot_sized_images()
    rows = [measure(images, name) for name, setting in SETTINGS.items() if setting.downsample == "stride"]
    print(describe(found))
    header = ["setting", "maml_l2l (ms/task)", "learn2learn (ms/task)", "ratio", "sampling share of a step"]
    cells = [
        [
            row["setting"],
            f"{row['ours_ms']:.3f}",
            f"{row['learn2learn_ms']:.2f}",
            f"{row['learn2learn_ms'] / row['ours_ms']:.0f}x",
            f"{row['sampling_share']:.1f} %",
        ]
        for row in rows
    ]
    print(common.table(header, cells))
    common.write_json(arguments.json, {"machine": found, "rows": rows})
    if arguments.plot:
        plot(rows, arguments.plot)


if __name__ == "__main__":
    main()
