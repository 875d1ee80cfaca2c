"""Colour pictures of unseen classes: what a body that has learned from photographs is worth, and training it further.

    python -m benchmarks.icons --icons DIR --to FOLDER
    python -m benchmarks.photos --path FOLDER --runs DIR --json FILE [--only ROW ...] [--weights FILE]

FOLDER has train, val and test; `icons.py` makes one from the icon themes of Debian. Each row is 5-way 1-shot and 5-way
5-shot on its test classes, 1,000 tasks each, on one thread. Training goes on where it stopped, and rows that the JSON
file has are not measured again. The body is EfficientNet-Lite0.
"""

from __future__ import annotations

import json
import time
from datetime import date
from pathlib import Path

import torch

from benchmarks import common, lite0
from benchmarks.digits import nearest_neighbour
from maml_l2l import commands, load_checkpoint, load_experiment, load_pretrained, train
from maml_l2l.algorithms.meta_learner import MetaLearner
from maml_l2l.algorithms.scores import Evaluation
from maml_l2l.backbones import LibraryNetwork
from maml_l2l.checkpoints.checkpoint import Checkpoint
from maml_l2l.config import Data
from maml_l2l.data.labelled_images import LabelledImages
from maml_l2l.data.sources import class_split, load_data
from maml_l2l.experiments.evaluation import evaluate_learner
from maml_l2l.experiments.resuming import holds_run
from maml_l2l.system.machine import machine
from maml_l2l.tasks.stream import TaskStream

WAYS, SHOTS, QUERIES = 5, (1, 5), 1
TASKS, TASKS_BY_NETWORK = 1000, 300  # the latter where each picture of each task passes through a network anew
_COMMON = ["data.name=folder", "run.threads=1", "task.shots=1", "task.queries=1", "algorithm.head=prototype"]
_COMMON += ["train.schedule=cosine", "train.validate_tasks=40", "train.checkpoint_every=25"]
# Each takes about ten minutes on one thread of its own.
TRAINED = {
    "Conv4, trained": [
        *("data.image_size=42", "model.downsample=max_pool", "algorithm.inner_lr=0.1", "algorithm.learn_inner_lr=true"),
        *("task.ways=10", "train.meta_batch=4", "train.shift=3", "train.iterations=350", "train.validate_every=175"),
    ],
    "ResNet-12, trained": [
        *("data.image_size=42", "model.name=resnet12", "algorithm.adapt=head", "algorithm.inner_steps=0"),
        *("algorithm.engine=loop", "task.ways=20", "train.meta_batch=1", "train.iterations=190"),
        *("train.shift=3", "train.validate_every=95"),
    ],
    "ImageNet body, meta-trained": [
        *(f"model.name={lite0.NAME}", "data.image_size=128", "task.ways=20", "train.meta_batch=1"),
        *(
            "train.shift=8",
            "train.meta_lr=0.0003",
            "train.iterations=500",
            "train.validate_every=250",
            "train.validate_tasks=20",
        ),
    ],
}
NEIGHBOUR, UNTRAINED = "cosine nearest neighbour on pixels", "ImageNet body, untrained"
ROWS = (NEIGHBOUR, "Conv4, trained", "ResNet-12, trained", UNTRAINED, "ImageNet body, meta-trained")


def stream_of(images: LabelledImages, classes: list[str], shots: int) -> TaskStream:
    """The tasks of a row, the same for all rows."""
    sizes = {"ways": WAYS, "shots": shots, "queries": QUERIES}
    return TaskStream(images, classes, split="test", rotate=False, seed=0, **sizes)


def evaluate(learner: MetaLearner, images: LabelledImages, classes: list[str], shots: int, steps: int) -> Evaluation:
    """Scores on the first tasks, each query alone."""
    once = isinstance(learner.module, LibraryNetwork)
    options = {"tasks": TASKS if once else TASKS_BY_NETWORK, "steps": [steps], "normalisation": "support"}
    return evaluate_learner(learner, stream_of(images, classes, shots), device=torch.device("cpu"), **options)


def trained(row: str, path: str, runs: Path, weights: Path | None) -> tuple[Checkpoint, float]:
    """The best checkpoint of a row's training and the seconds that it took; goes on with what there is."""
    folder = runs / row.lower().replace(", ", "_").replace(" ", "_")
    settings = [*_COMMON, f"data.root={path}", *TRAINED[row]]
    if "model.name=timm" in " ".join(settings):
        settings += [f"model.weights={lite0.lite0_file(runs) if weights is None else weights}"]
    experiment = load_experiment(None, settings)
    last = folder / "last.pth"
    if not last.exists() or load_checkpoint(last).iteration < experiment.train.iterations:
        train(experiment, folder, resume=holds_run(folder), progress=True)
    sessions = json.loads((folder / "sessions.json").read_text())
    return load_checkpoint(folder / "best.pth"), sum(session["seconds"] for session in sessions)


def measure(row: str, path: str, runs: Path, weights: Path | None) -> dict:
    """The figures of one row."""
    start, seconds, checkpoint = time.perf_counter(), 0.0, None
    if row in TRAINED:
        checkpoint, seconds = trained(row, path, runs, weights)
        start = time.perf_counter()
    elif row == UNTRAINED:
        checkpoint = load_pretrained("photos", str(weights or lite0.lite0_file(runs)))
    data = checkpoint.experiment.data if checkpoint else Data(name="folder", image_size=42)
    images = load_data(data.model_copy(update={"root": path}))
    classes = class_split(data, images)["test"]
    images = _of(images, classes)
    found = {}
    for shots in SHOTS:
        if checkpoint is None:
            evaluation = nearest_neighbour(stream_of(images, classes, shots).batch(0, TASKS))
        else:
            steps = checkpoint.experiment.algorithm.inner_steps
            evaluation = evaluate(checkpoint.learner(), images, classes, shots, steps)
        accuracies = {"accuracy": evaluation.mean()[0], "ci95": evaluation.ci95()[0]}
        found[f"{shots}-shot"] = {**accuracies, "tasks": evaluation.accuracies.shape[1]}
    row_of = {"row": row, "image_size": data.image_size, **found, "classes": len(classes)}
    times = {"training_seconds": seconds, "seconds": round(time.perf_counter() - start, 1)}
    return {**row_of, **times, "settings": TRAINED.get(row, []), "date": date.today().isoformat(), "machine": machine()}


def _of(images: LabelledImages, classes: list[str]) -> LabelledImages:
    labels = torch.tensor([images.class_names.index(name) for name in classes])
    kept = torch.isin(images.labels, labels)
    return LabelledImages(images.pixels[kept], torch.bucketize(images.labels[kept], labels), tuple(classes))


def main() -> None:
    """Measure what is not measured yet, print, write."""
    parser = common.parser("Accuracy on unseen classes of colour pictures.")
    parser.add_argument("--path", metavar="FOLDER", required=True, help="pictures: train, val and test, class folders")
    parser.add_argument("--runs", metavar="DIR", type=Path, default=Path("runs/photos"), help="where training goes")
    parser.add_argument("--weights", metavar="FILE", type=Path, help="of tf_efficientnet_lite0; default: the package's")
    parser.add_argument("--only", metavar="ROW", nargs="+", help="rows whose name begins so, e.g. 'ImageNet body'")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    file = None if arguments.json is None else Path(arguments.json)
    figures = json.loads(file.read_text())["rows"] if file is not None and file.exists() else []
    for row in ROWS:
        wanted = arguments.only is None or any(row.startswith(name) for name in arguments.only)
        if wanted and all(one["row"] != row for one in figures):
            figures.append(measure(row, arguments.path, arguments.runs, arguments.weights))
            figures.sort(key=lambda one: ROWS.index(one["row"]))
            missing = [name for name in ROWS if all(one["row"] != name for one in figures)]
            common.write_json(arguments.json, {"ways": WAYS, "rows": figures, "not_run": missing})
    cells = [
        [
            one["row"],
            one["image_size"],
            *(f"{one[s]['accuracy']:.1f} +- {one[s]['ci95']:.1f}" for s in ("1-shot", "5-shot")),
        ]
        for one in figures
    ]
    print(common.table(["method", "pixels", "5-way 1-shot (%)", "5-way 5-shot (%)"], cells))


if __name__ == "__main__":
    commands.run(main)
