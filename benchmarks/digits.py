"""Handwritten digits by a network that never saw one, against cosine nearest neighbour on the same pixels.

    python -m benchmarks.digits --model runs/omniglot_5w5s/best.pth [--tasks N] [--json FILE]

The digits are scikit-learn's (`pip install scikit-learn`; 1,797 of 8x8 pixels), enlarged to 28x28 and made black on
white at middle grey. Each task picks 5 of the 10 digits, 5 pictures of each as support and 10 as queries, which are
predicted as `maml_l2l.predict` does: each independently of the others.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F

from benchmarks import common
from maml_l2l import commands
from maml_l2l.algorithms.scores import Evaluation, score
from maml_l2l.checkpoints.checkpoint import load_checkpoint
from maml_l2l.config import Data
from maml_l2l.data.labelled_images import LabelledImages
from maml_l2l.data.pictures import picture_pixels
from maml_l2l.experiments.evaluation import evaluate_learner
from maml_l2l.system.device import find_device
from maml_l2l.system.errors import UserError
from maml_l2l.system.machine import machine
from maml_l2l.tasks.batch import TaskBatch
from maml_l2l.tasks.stream import TaskStream

SIZES = {"ways": 5, "shots": 5, "queries": 10}
SIDE, DARKEST = 28, 16  # pixels; the most ink that scikit-learn's digits hold in one


def load_digits(data: Data) -> LabelledImages:
    """All digits as the network sees them. Raises `UserError` where scikit-learn is not installed."""
    try:
        from sklearn import datasets
    except ImportError:
        raise UserError("the digits are scikit-learn's, which is not installed: pip install scikit-learn.") from None
    found = datasets.load_digits()
    order = found.target.argsort(kind="stable")
    pixels = np.stack([picture_pixels(_enlarged(digit), data) for digit in found.images[order]])
    return LabelledImages(torch.from_numpy(pixels), torch.from_numpy(found.target[order]), tuple("0123456789"))


def _enlarged(digit: np.ndarray) -> Image.Image:
    """digit: (8, 8), ink = 16 -> black on white."""
    paper = Image.fromarray(np.rint(255 * (1 - digit / DARKEST)).astype(np.uint8))
    return paper.resize((SIDE, SIDE), Image.Resampling.BICUBIC).convert("1", dither=Image.Dither.NONE)


def nearest_neighbour(tasks: TaskBatch) -> Evaluation:
    """How well the class of the support picture with the largest cosine similarity is the query's."""
    support, query = (F.normalize(images.flatten(2), dim=2) for images in (tasks.support, tasks.query))
    similarities = (query @ support.transpose(1, 2)).unflatten(2, (tasks.ways, -1))  # (T, queries, ways, shots)
    scores = score(similarities.amax(3).double(), tasks.query_labels)
    return Evaluation((0,), scores.losses[None], 100 * scores.accuracies[None])


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description="5-way 5-shot accuracy on handwritten digits that no training saw.")
    parser.add_argument("--model", metavar="CHECKPOINT", required=True, help="a .pth file that training wrote")
    parser.add_argument("--tasks", type=int, default=1000, help="random tasks (default: 1000)")
    parser.add_argument("--json", metavar="FILE", help="write all figures as JSON")
    arguments = parser.parse_args()
    checkpoint = load_checkpoint(arguments.model)
    checkpoint.check_ways(SIZES["ways"])
    experiment, device = checkpoint.experiment, find_device()
    images = load_digits(experiment.data)
    stream = TaskStream(images, list(images.class_names), split="digits", rotate=False, seed=0, **SIZES)
    options = {"tasks": arguments.tasks, "steps": [experiment.algorithm.inner_steps], "device": device}
    options |= {"normalisation": "support", "progress": True}
    network = evaluate_learner(checkpoint.learner(device=device), stream, **options)
    found = {"network": network, "cosine nearest neighbour": nearest_neighbour(stream.batch(0, arguments.tasks))}
    rows = [{"by": name, "accuracy": one.mean()[0], "ci95": one.ci95()[0]} for name, one in found.items()]
    print(f"{arguments.tasks} 5-way 5-shot tasks of handwritten digits, {arguments.model}")
    cells = [[row["by"], f"{row['accuracy']:.2f}", f"+- {row['ci95']:.2f}"] for row in rows]
    print(common.table(["digits told apart by", "accuracy (%)", "95 % interval"], cells))
    common.write_json(arguments.json, {"machine": machine(), "tasks": arguments.tasks, **SIZES, "rows": rows})


if __name__ == "__main__":
    commands.run(main)
