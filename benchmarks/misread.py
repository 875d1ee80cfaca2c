"""Which images a checkpoint misreads, and whether it is always the same ones.

    python -m benchmarks.misread --model CHECKPOINT [--split val] [--tasks N] [--json FILE]

An image is a query in many tasks, among other classes and with other support images each time. One that is misread in
a good part of them is at odds with its class, whatever it meets: it may be labelled wrong, or show something else. One
that is misread once or twice met a class like its own, or an unlucky support set.
"""

from __future__ import annotations

import math

import torch
from tqdm import tqdm

from benchmarks import common
from maml_l2l import commands
from maml_l2l.checkpoints.checkpoint import Checkpoint, load_checkpoint
from maml_l2l.config import with_overrides
from maml_l2l.data.labelled_images import LabelledImages
from maml_l2l.data.sources import load_data
from maml_l2l.system.device import find_device
from maml_l2l.system.machine import machine
from maml_l2l.tasks.stream import TaskStream

WORST = 0.01  # of the images: those whose errors are counted together
LISTED, DRAWN, OTHERS = 12, 8, 11  # images in the table and the picture; images of its class beside each there
_AT_ONCE = 50


@torch.no_grad()
def count_misread(checkpoint: Checkpoint, images: LabelledImages, split: str, tasks: int) -> torch.Tensor:
    """(2, N) int64: how often each image was a query in the first `tasks` tasks of `split`, and how often misread.

    Tasks, inner steps and normalisation are those of `python -m maml_l2l.eval` with the checkpoint's own config.
    """
    experiment, device = checkpoint.experiment, find_device()
    data, sizes = experiment.data, experiment.task.model_dump()
    options = {"rotate": data.rotate, "seed": experiment.run.seed, "drop_small": data.drop_small_classes}
    stream = TaskStream(images, checkpoint.split[split], split=split, **sizes, **options)
    learner = checkpoint.learner(experiment.algorithm, device)
    steps, normalisation = [experiment.algorithm.inner_steps], experiment.algorithm.normalisation
    counts = torch.zeros(2, len(images.labels), dtype=torch.int64)
    for start in tqdm(range(0, tasks, _AT_ONCE), unit_scale=_AT_ONCE, unit="task", disable=None):
        count = min(_AT_ONCE, tasks - start)
        batch = stream.batch(start, count).to(device)
        logits = [learner.adapt_and_score(chunk, steps, normalisation)[0] for chunk in learner.chunks(batch)]
        wrong = (torch.cat(logits).argmax(-1) != batch.query_labels).cpu().flatten()
        queries = stream.indices(start, count)[:, :, sizes["shots"] :].flatten()
        counts[0].index_add_(0, queries, torch.ones_like(queries))
        counts[1].index_add_(0, queries, wrong.long())
    return counts


def summary(counts: torch.Tensor, images: LabelledImages) -> dict:
    """What `counts`, see `count_misread`, say: totals, and every image that was ever misread, the worst first."""
    queried, misread = counts
    shares = misread / queried.clamp(min=1)
    order = shares.argsort(descending=True, stable=True)
    shown, queries, errors = int((queried > 0).sum()), int(queried.sum()), int(misread.sum())
    worst = math.ceil(WORST * shown)
    firsts = torch.searchsorted(images.labels, images.labels)  # the first image of each one's class
    return {
        "images": shown,
        "queries": queries,
        "errors": errors,
        "accuracy": 100 * (1 - errors / queries),
        "worst_images": worst,
        "worst_errors": int(misread[order[:worst]].sum()),
        "misread": [
            {
                "class": images.class_names[int(images.labels[index])],
                "number": index - int(firsts[index]) + 1,
                "queried": int(queried[index]),
                "misread": int(misread[index]),
            }
            for index in order[: int((misread > 0).sum())].tolist()
        ],
    }


def plot(found: dict, images: LabelledImages, path: str, title: str) -> None:
    """The worst images, a row for each, beside others of their class."""
    from matplotlib.figure import Figure

    worst = found["misread"][:DRAWN]
    figure = Figure(figsize=(OTHERS + 3.5, 0.95 * len(worst) + 0.8), layout="constrained")
    figure.suptitle(title)
    places = figure.subplots(len(worst), OTHERS + 1, squeeze=False)
    for row, one in zip(places, worst, strict=True):
        of_class = (images.labels == images.class_names.index(one["class"])).nonzero()[:, 0]
        number = one["number"] - 1
        shown = [number, *(other for other in range(len(of_class)) if other != number)][: len(row)]
        row[0].set_ylabel(
            f"{one['class']}\nno. {one['number']}: {100 * one['misread'] / one['queried']:.0f} %",
            rotation=0, ha="right", va="center", fontsize=9, parse_math=False,
        )  # fmt: skip
        for place, index in zip(row, shown, strict=False):
            place.imshow(images.pixels[of_class[index]].movedim(0, -1), cmap="gray", vmin=0, vmax=255)
        for place in row:
            place.set(xticks=[], yticks=[])
            place.spines[:].set_visible(place is row[0])
            place.spines[:].set(color="C3", linewidth=2)
    figure.savefig(path, dpi=100)


def main() -> None:
    """Measure, print, write, draw."""
    parser = common.parser("Which images a checkpoint misreads, and how often.")
    parser.add_argument("--model", metavar="CHECKPOINT", required=True, help="a .pth file that training wrote")
    parser.add_argument("--path", metavar="DIR", help="where the data lie (default: as in the checkpoint's config)")
    parser.add_argument("--split", choices=("train", "val", "test"), default="val", help="default: val")
    parser.add_argument("--tasks", type=int, default=10000, help="random tasks (default: 10000)")
    arguments = parser.parse_args()
    checkpoint = load_checkpoint(arguments.model)
    changes = {"data.root": arguments.path, "eval.tasks": arguments.tasks}
    experiment = with_overrides(checkpoint.experiment, changes, "the command line")
    images = load_data(experiment.data)
    found = summary(count_misread(checkpoint, images, arguments.split, experiment.eval.tasks), images)
    title = f"{arguments.tasks:,} {arguments.split} tasks, {arguments.model}"
    print(f"{title}: {found['accuracy']:.2f} % of {found['queries']:,} queries of {found['images']:,} images")
    rows = [
        [one["class"], one["number"], one["queried"], f"{100 * one['misread'] / one['queried']:.0f}"]
        for one in found["misread"][:LISTED]
    ]
    print(common.table(["class", "image", "times a query", "misread (%)"], rows))
    print(
        f"{len(found['misread'])} images were ever misread; the {found['worst_images']} misread most often make "
        f"{found['worst_errors']} of the {found['errors']} errors"
    )
    run = {"model": arguments.model, "split": arguments.split, "tasks": arguments.tasks}
    common.write_json(arguments.json, {"machine": machine(), **run, **found})
    if arguments.plot and found["misread"]:
        plot(found, images, arguments.plot, f"{title}: the images misread most often")


if __name__ == "__main__":
    commands.run(main)
