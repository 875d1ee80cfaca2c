"""Pictures in which a network sees nothing, or not one sign, are named."""

import warnings

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from maml_l2l.checkpoints.checkpoint import save_checkpoint
from maml_l2l.config import load_experiment
from maml_l2l.data.drawing_problems import drawing_problem
from maml_l2l.data.glyphs import load_glyphs
from maml_l2l.data.ink import ink_pixels
from maml_l2l.data.normalised_ink import normalised_ink
from maml_l2l.data.pictures import thumbnails
from maml_l2l.data.sources import class_split, load_data
from maml_l2l.experiments.trainer import MetaTrainer
from maml_l2l.prediction import FewShotClassifier
from maml_l2l.reports.plots import beside_originals
from tests.commands import run
from tests.test_training import TINY

INKS = {"finn": ink_pixels, "normalised": normalised_ink}


def picture(*boxes, side=400, ink=0, paper=255):
    """Rings in these boxes, given as shares of the side; one that ends in True is filled."""
    image = Image.new("L", (side, side), paper)
    draw = ImageDraw.Draw(image)
    for left, top, right, bottom, *filled in boxes:
        place = [side * edge for edge in (left, top, right, bottom)]
        draw.ellipse(place, fill=ink if filled else None, outline=ink, width=side // 20)
    return image


@pytest.mark.parametrize("ink", INKS)
@pytest.mark.parametrize(
    ("boxes", "problem"),
    [
        ([], "shows no ink"),
        ([(0.1, 0.4, 0.35, 0.65), (0.65, 0.4, 0.9, 0.65)], "holds two separate signs or more"),
        ([(0.4, 0.05, 0.65, 0.3), (0.4, 0.7, 0.65, 0.95)], "holds two separate signs or more"),
        ([(0.2, 0.2, 0.8, 0.8)], None),
        ([(0.2, 0.3, 0.5, 0.6), (0.5, 0.3, 0.8, 0.6)], None),  # parts that touch
        ([(0.2, 0.3, 0.48, 0.58), (0.55, 0.3, 0.83, 0.58)], None),  # and parts that nearly do
        ([(0.45, 0.35, 0.6, 0.9), (0.48, 0.08, 0.57, 0.17, True)], None),  # an i and its dot
    ],
)
def test_what_is_wrong_with_a_picture_is_said(ink, boxes, problem):
    assert drawing_problem(INKS[ink](picture(*boxes))) == problem


def lines(image, *paths):
    """The picture with further strokes, along points given as shares of the side."""
    side, draw = image.width, ImageDraw.Draw(image)
    for path in paths:
        draw.line([(side * x, side * y) for x, y in path], fill=0, width=side // 20)
    return image


BOX = [(0.1, 0.1), (0.9, 0.12), (0.88, 0.9), (0.12, 0.87), (0.1, 0.1)]  # as a hand draws it


@pytest.mark.parametrize("ink", INKS)
@pytest.mark.parametrize(
    ("boxes", "paths", "problem"),
    [
        ([(0.3, 0.3, 0.7, 0.7)], [BOX], "has a frame around it"),
        ([(0.3, 0.15, 0.7, 0.55)], [BOX], "has a frame around it"),  # which it touches
        ([], [BOX], None),  # a square is a sign
        ([], [BOX, [(0.5, 0.1), (0.5, 0.9)], [(0.1, 0.5), (0.9, 0.5)]], None),  # so are a window
        ([(0.1, 0.1, 0.9, 0.9), (0.4, 0.4, 0.6, 0.6)], [], None),  # two rings
        ([(0.3, 0.3, 0.7, 0.7)], [BOX[:4]], None),  # and a box that is open
    ],
)
def test_a_frame_around_a_sign_is_said(ink, boxes, paths, problem):
    assert drawing_problem(INKS[ink](lines(picture(*boxes), *paths))) == problem


def test_nearly_all_ink_is_said_of_what_the_network_sees():
    assert drawing_problem(ink_pixels(Image.new("L", (100, 100), 20))) == "is nearly all ink"
    assert drawing_problem(normalised_ink(Image.new("L", (100, 100), 20))) == "shows no ink"  # of no paper
    assert drawing_problem(normalised_ink(picture((0.2, 0.2, 0.8, 0.8, True)))) is None  # a disc is a sign


@pytest.mark.parametrize("ink", INKS)
def test_characters_of_several_parts_are_not_warned_of(ink, glyphs_root):
    pixels = load_glyphs(glyphs_root, alphabets=1, ink=ink).pixels[:, 0].numpy()
    assert np.mean([drawing_problem(drawing) is not None for drawing in pixels]) < 0.01


def saved(path, glyphs_root, *settings):
    experiment = load_experiment(None, [*TINY, f"data.root={glyphs_root}", *settings])
    images = load_data(experiment.data)
    trainer = MetaTrainer(experiment, images, class_split(experiment.data, images), torch.device("cpu"))
    save_checkpoint(trainer.validated(), path)
    return path


@pytest.fixture
def folders(tmp_path):
    """Support and queries, of which one each is fine."""
    for name, drawn in {
        "support/ring/1.png": picture((0.2, 0.2, 0.8, 0.8)),
        "support/none/1.png": picture(),
        "query/faint.png": picture((0.2, 0.2, 0.8, 0.8), ink=180, paper=235),
        "query/two.png": picture((0.1, 0.4, 0.35, 0.65), (0.65, 0.4, 0.9, 0.65)),
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        drawn.save(tmp_path / name)
    return tmp_path


@pytest.mark.parametrize(("ink", "named"), [("finn", ["none", "faint", "two"]), ("normalised", ["none", "two"])])
def test_the_command_names_such_pictures_in_support_and_queries(folders, glyphs_root, ink, named):
    model = saved(folders / "m.pth", glyphs_root, f"data.ink={ink}")
    plot = folders / "plot.png"
    options = ["--support", folders / "support", "--query", folders / "query", "--plot", plot]
    done = run("maml_l2l.predict", "--model", model, *options)
    assert done.returncode == 0, done.stderr
    paths = {"none": "support/none/1.png", "faint": "query/faint.png", "two": "query/two.png"}
    problems = {"none": "shows no ink", "faint": "shows no ink", "two": "holds two separate signs or more"}
    lines = [line for line in done.stderr.splitlines() if "as the network sees it" in line]
    assert len(lines) == len(named)
    for name, line in zip(named, lines, strict=True):
        said = f"{folders / paths[name]} {problems[name]}, as the network sees it (predict --plot draws that)"
        assert line == f"warning: {said}"
    assert plot.stat().st_size > 0


def test_in_a_program_pictures_are_named_by_their_index(glyphs_root, tmp_path):
    classifier = FewShotClassifier(saved(tmp_path / "m.pth", glyphs_root))
    ring, nothing = picture((0.2, 0.2, 0.8, 0.8)), picture()
    with pytest.warns(UserWarning, match=r"^images\[1\] shows no ink") as caught:
        classifier.fit([ring, nothing], ["ring", "nothing"])
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        classifier.predict([ring])
    for ask in (classifier.predict_proba, classifier.predict):
        with pytest.warns(UserWarning, match=r"^images\[0\] shows no ink") as caught:
            ask([nothing])
        assert caught[0].filename == __file__


def test_originals_stand_beside_what_is_seen(tmp_path):
    picture((0.2, 0.2, 0.8, 0.8), paper=200).resize((400, 200)).save(tmp_path / "1.png")
    seen = torch.zeros(1, 1, 28, 28, dtype=torch.uint8)
    seen[..., 0, 0] = 255
    pair = beside_originals(thumbnails([tmp_path / "1.png"], side=112), seen)
    assert pair.shape == (1, 3, 112, 112 + 14 + 112)
    assert (pair[..., :28, :112] == 255).all() and (pair[..., 30:80, 2:6] == 200).all()  # a margin, its paper
    assert (pair[..., 112:126] == 255).all()
    assert (pair[..., :4, 126:130] == 255).all() and pair[..., 4:, 130:].max() == 0
