"""People's own drawings, read by a network that never saw them, beside cosine nearest neighbour on the same pixels.

    python -m benchmarks.drawings --model CHECKPOINT [--tasks N] [--path OMNIGLOT] [--json FILE] [--plot FILE]

Hand signs: 12 signs that `hand_signs.py` draws, 20 pictures of each in each of 14 conditions (pens, sizes, greys,
shade, noise, blur, chalk, stylus, ...), and `mixed`, where each picture has a condition of its own and is turned by up
to 15 degrees. Digits: scikit-learn's, enlarged. Fonts: 45 letters and digits in handwriting-like fonts from Debian.
Omniglot: the checkpoint's test characters. What is not there is named and left out. Each picture reaches the network as
`maml_l2l.predict` would bring it, by the checkpoint's `data.ink`, and each query is predicted independently of others.
Rows that the JSON file has of the same checkpoint are not measured again.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from tqdm import tqdm

from benchmarks import common, hand_signs
from benchmarks.digits import nearest_neighbour
from maml_l2l import commands
from maml_l2l.checkpoints.checkpoint import Checkpoint, load_checkpoint
from maml_l2l.config import Data
from maml_l2l.data.labelled_images import LabelledImages
from maml_l2l.data.omniglot_folder import holds_omniglot
from maml_l2l.data.pictures import picture_pixels
from maml_l2l.data.sources import load_data
from maml_l2l.data.splits import unseen_classes
from maml_l2l.experiments.evaluation import evaluate_learner
from maml_l2l.pretrained import find_checkpoint
from maml_l2l.system.device import find_device
from maml_l2l.system.errors import UserError
from maml_l2l.system.machine import machine
from maml_l2l.tasks.stream import TaskStream

PICTURES, QUERIES = 20, 5  # of each sign in each condition; of each class of a task
# What an l, an I or an O is, nobody knows; small letters are left out that are large ones made small.
CHARACTERS = "0123456789ABCDEFGHJKLMNPQRSTUVWXYZabdefghnqrt"
# fmt: off
FONTS = (  # files, without their endings
    "Breip", "breipfont", "BecauseWeBuild-Regular", "BecauseWeConnect-Regular", "BecauseWeCreate-Regular",
    "BecauseWeLearn-Regular", "BecauseWeMentor-Regular", "BecauseWeOrganize-Regular", "ComicNeue-Light",
    "ComicNeue-Regular", "DancingScript-Bold", "DancingScript-Regular", "dkg", "dkgBd", "dkgBI", "dkgIt",
    "Ecolier-court", "femkeklaver", "Humor-Sans", "KaushanScript-Regular", "Kristi", "LeckerliOne-Regular",
    "NanumBarunpenB", "NanumBarunpenR", "NanumBrush", "NanumPen", "Rufscript010", "Delphine", "SteveHand",
    "YuseiMagic-Regular",
)
# fmt: on
PACKAGES = (
    "fonts-breip fonts-bwht fonts-comic-neue fonts-dancingscript fonts-dkg-handwriting fonts-ecolier-court "
    "fonts-femkeklaver fonts-humor-sans fonts-kaushanscript fonts-kristi fonts-leckerli-one fonts-nanum-extra "
    "fonts-rufscript fonts-sjfonts fonts-yusei-magic"
)
_FONT_FOLDERS = ("/usr/share/fonts", "/usr/local/share/fonts", "~/.local/share/fonts", "~/.fonts")


class Row(NamedTuple):
    """One accuracy of the table; `images` draws its pictures when they are needed."""

    what: str
    ways: int
    shots: int
    images: Callable[[], LabelledImages]


def labelled(pictures: list[tuple[str, Image.Image]], data: Data) -> LabelledImages:
    """Pictures with the names of their classes, as the network sees them."""
    pictures = sorted(pictures, key=lambda one: one[0])
    names = tuple(sorted({name for name, _ in pictures}))
    pixels = np.stack([picture_pixels(picture, data) for _, picture in pictures])
    return LabelledImages(torch.from_numpy(pixels), torch.tensor([names.index(name) for name, _ in pictures]), names)


def sign_images(condition: str, data: Data) -> LabelledImages:
    """Drawings of each hand sign, always the same; condition: one of `hand_signs.CONDITIONS`, or `mixed`."""
    rng = np.random.default_rng(zlib.crc32(condition.encode()))
    if condition == "mixed":
        drawn = [(name, hand_signs.draw_mixed(name, rng)) for name in hand_signs.SIGNS for _ in range(2 * PICTURES)]
    else:
        how = hand_signs.CONDITIONS[condition]
        drawn = [(name, hand_signs.draw_sign(name, how, rng)) for name in hand_signs.SIGNS for _ in range(PICTURES)]
    return labelled(drawn, data)


def digit_images(data: Data) -> LabelledImages:
    """scikit-learn's digits, enlarged from 8x8. Raises `UserError` where it is not installed."""
    try:
        from sklearn import datasets
    except ImportError:
        raise UserError("scikit-learn is not installed: pip install scikit-learn") from None
    found = datasets.load_digits()
    papers = (Image.fromarray(np.rint(255 * (1 - digit / 16)).astype(np.uint8)) for digit in found.images)
    large = [paper.resize((64, 64), Image.Resampling.BICUBIC) for paper in papers]
    return labelled([(str(digit), picture) for digit, picture in zip(found.target, large, strict=True)], data)


def font_files() -> list[Path]:
    """Those of `FONTS` that are installed. Raises `UserError` where they are too few to measure anything."""
    everything = (path for folder in _FONT_FOLDERS for path in sorted(Path(folder).expanduser().rglob("*.[ot]tf")))
    found = {path.stem: path for path in everything if path.stem in FONTS}
    if len(found) < 10 + QUERIES:
        raise UserError(f"{len(found)} of {len(FONTS)} fonts are installed: apt install {PACKAGES}")
    return [found[name] for name in FONTS if name in found]


def font_images(data: Data) -> LabelledImages:
    """`CHARACTERS` in every font that has them."""
    drawn = []
    for path in font_files():
        font = ImageFont.truetype(str(path), 120)
        missing = bytes(font.getmask("\uffff"))
        for character in CHARACTERS:
            left, top, right, bottom = font.getbbox(character)
            if right > left and bottom > top and bytes(font.getmask(character)) != missing:
                picture = Image.new("L", (round(right - left) + 80, round(bottom - top) + 80), 255)
                ImageDraw.Draw(picture).text((40 - left, 40 - top), character, 0, font)
                drawn.append((character, picture))
    return labelled(drawn, data)


def omniglot_images(root: str, checkpoint: Checkpoint) -> LabelledImages:
    """The test characters of the checkpoint's split. Raises `UserError` where Omniglot is not in `root`."""
    if not holds_omniglot(root):
        raise UserError(f"there is no Omniglot in {root}: python -m maml_l2l.download --path {root}, or name --path")
    images = load_data(Data(root=root, ink=checkpoint.experiment.data.ink))
    names = unseen_classes(checkpoint.split, "test", images.class_names, checkpoint.earlier_classes)
    labels = [images.class_names.index(name) for name in sorted(names)]
    kept = torch.isin(images.labels, torch.tensor(labels))
    return LabelledImages(
        images.pixels[kept], torch.bucketize(images.labels[kept], torch.tensor(labels)), tuple(sorted(names))
    )


def rows(checkpoint: Checkpoint, root: str) -> Iterator[Row]:
    """All that is measured."""
    data = checkpoint.experiment.data
    for condition in ("mixed", *hand_signs.CONDITIONS):
        for ways in (5, 12):
            yield Row(f"signs, {condition}", ways, 1, lambda condition=condition: sign_images(condition, data))
    for ways in (5, 10):
        yield Row("digits", ways, 5, lambda: digit_images(data))
    for ways, shots in ((5, 1), (5, 5), (45, 5)):
        yield Row("fonts", ways, shots, lambda: font_images(data))
    for ways in (5, 20):
        yield Row("Omniglot", ways, 1, lambda: omniglot_images(root, checkpoint))


def measure(row: Row, images: LabelledImages, checkpoint: Checkpoint, tasks: int) -> dict:
    """The figures of a row."""
    device, sizes = find_device("auto"), {"ways": row.ways, "shots": row.shots, "queries": QUERIES}
    stream = TaskStream(images, list(images.class_names), split="drawings", rotate=False, seed=0, **sizes)
    options = {"tasks": tasks, "steps": [checkpoint.experiment.algorithm.inner_steps], "device": device}
    network = evaluate_learner(checkpoint.learner(device=device), stream, **options, normalisation="support")
    neighbour = nearest_neighbour(stream.batch(0, tasks))
    return {
        "what": row.what,
        **sizes,
        "accuracy": network.mean()[0],
        "ci95": network.ci95()[0],
        "neighbour": neighbour.mean()[0],
        "neighbour_ci95": neighbour.ci95()[0],
    }


def measure_all(checkpoint: Checkpoint, table: list[Row], content: dict, write: Callable[[], None]) -> None:
    """Add to `content` the figures of the rows that it lacks, and why others cannot be had; `write` after each."""
    figures, drawn = content["rows"], {}
    content["skipped"] = []
    for row in tqdm(table, "drawings", unit="row", disable=None):
        if any((one["what"], one["ways"], one["shots"]) == row[:3] for one in figures):
            continue
        try:
            checkpoint.check_ways(row.ways)
            if row.what not in drawn:
                drawn = {row.what: row.images()}
            figures.append(measure(row, drawn[row.what], checkpoint, content["tasks"]))
        except UserError as error:
            content["skipped"].append(f"{row.what}, {row.ways}-way {row.shots}-shot: {error}")
        write()


def plot(figures: list[dict], path: str, title: str) -> None:
    """The network's accuracies and the nearest neighbour's, a line for each row."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 0.24 * len(figures) + 1.6), layout="constrained")
    axes = figure.subplots()
    for kind, ci95, name, marker in (
        ("accuracy", "ci95", "network", "o"),
        ("neighbour", "neighbour_ci95", "cosine nearest neighbour", "x"),
    ):
        values, errors = ([one[key] for one in figures] for key in (kind, ci95))
        axes.errorbar(values, range(len(figures)), xerr=errors, fmt=marker, markersize=4, capsize=2, label=name)
    names = [f"{one['what']}, {one['ways']}-way {one['shots']}-shot" for one in figures]
    axes.set_yticks(range(len(figures)), names, fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel("accuracy (%), 95 % interval over tasks")
    axes.set_title(title, fontsize=10, parse_math=False)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=150)


def main() -> None:
    """Measure, print, write."""
    parser = common.parser("Accuracy on people's own drawings that no training saw.")
    parser.add_argument("--model", metavar="CHECKPOINT", required=True, help="a .pth file, or a name in pretrained/")
    parser.add_argument("--tasks", type=int, default=300, help="random tasks of each row (default: 300)")
    parser.add_argument("--path", metavar="DATA", help="folder of Omniglot (default: the one of the checkpoint)")
    parser.add_argument("--only", metavar="WORD", help="measure only rows whose name holds this, e.g. mixed")
    arguments = parser.parse_args()
    path = find_checkpoint(arguments.model)
    checkpoint = load_checkpoint(path)
    if not checkpoint.experiment.data.holds_drawings:
        raise UserError(f"{arguments.model} reads pictures, not drawings. Give one trained on drawings.")
    table = rows(checkpoint, arguments.path or checkpoint.experiment.data.root)
    table = [row for row in table if (arguments.only or "") in row.what]
    ink, digest = checkpoint.experiment.data.ink, hashlib.sha256(path.read_bytes()).hexdigest()
    content = {"machine": machine(), "model": arguments.model, "sha256": digest, "ink": ink, "tasks": arguments.tasks}
    content = common.go_on(arguments.json, content | {"rows": []}, ("sha256", "tasks"))
    measure_all(checkpoint, table, content, lambda: common.write_json(arguments.json, content))
    print(f"{arguments.tasks} tasks of each, {QUERIES} queries per class, {ink} ink, {arguments.model}")
    cells = [
        [
            one["what"],
            f"{one['ways']}-way {one['shots']}-shot",
            f"{one['accuracy']:.1f} +- {one['ci95']:.1f}",
            f"{one['neighbour']:.1f} +- {one['neighbour_ci95']:.1f}",
        ]
        for one in content["rows"]
    ]
    print(common.table(["drawings", "tasks", "network (%)", "nearest neighbour (%)"], cells))
    for line in content["skipped"]:
        print(f"skipped: {line}")
    if arguments.plot and cells:
        plot(content["rows"], arguments.plot, f"{arguments.model}, {ink} ink")


if __name__ == "__main__":
    commands.run(main)
