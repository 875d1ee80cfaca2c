"""The command that names a user's pictures: what it finds in folders, prints, writes and refuses."""

import json
import re

import numpy as np
import pytest
import torch
from PIL import Image

from maml_l2l.data.class_folders import query_pictures, support_pictures
from maml_l2l.data.glyphs import load_glyphs
from maml_l2l.prediction import FewShotClassifier
from maml_l2l.reports import plots, tables
from maml_l2l.system.errors import UserError
from tests.commands import assert_user_error, launch, run
from tests.test_commands import trained

__all__ = ["trained"]


@pytest.fixture(scope="module")
def pictures(glyphs_root, tmp_path_factory):
    """A folder of support pictures, unequally many a class, and one of queries, with folders and other files in it."""
    folder = tmp_path_factory.mktemp("pictures")
    pixels = 255 - load_glyphs(glyphs_root, alphabets=3).pixels[:, 0].numpy()
    names = [f"support/eel/{i}.png" for i in range(3)] + ["support/ant/a.png", "support/bee/b.jpg", "support/bee/c.png"]
    names += ["queries/z/1.png", "queries/a.png", "queries/z/0.png"]
    for index, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels[20 * index]).save(path)
    (folder / "queries/.hidden").mkdir()
    Image.fromarray(pixels[0]).save(folder / "queries/.hidden/2.png")
    (folder / "queries/notes.txt").write_text("drawn by hand")
    return folder


def test_the_command_prints_a_line_a_picture_and_writes_all_of_it(trained, pictures, tmp_path):
    model = trained[0] / "best.pth"
    report, plot = tmp_path / "new" / "report.json", tmp_path / "new" / "plot.png"
    queries = [
        str(pictures / name) for name in ("support/bee/b.jpg", "queries/a.png", "queries/z/0.png", "queries/z/1.png")
    ]
    options = ["--support", pictures / "support", "--query", queries[0], pictures / "queries", "--steps", 2]
    done = launch("maml_l2l.predict", "--model", model, *options, "--json", report, "--plot", plot)
    assert done.returncode == 0, done.stderr
    found = json.loads(report.read_text())
    classifier = FewShotClassifier(model, steps=2).fit(*support_pictures(pictures / "support"))
    assert classifier.classes_.tolist() == ["ant", "bee", "eel"]
    probabilities = classifier.predict_proba(queries)
    assert [one["path"] for one in found] == queries
    for line, one, row in zip(done.stdout.splitlines(), found, probabilities, strict=True):
        ranking = [one, *one["runners_up"]]
        order = row.argsort()[::-1]
        assert [part["class"] for part in ranking] == classifier.classes_[order].tolist()
        assert [part["probability"] for part in ranking] == pytest.approx(row[order].tolist(), abs=1e-5)
        first, *others = (f"{part['class']} {100 * part['probability']:.1f} %" for part in ranking)
        assert line == f"{one['path']}: {first} ({', '.join(others)})"
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_unequal_classes_and_nested_ones_are_found(pictures, tmp_path):
    paths, labels = support_pictures(pictures / "support")
    assert labels == ["ant", "bee", "bee", "eel", "eel", "eel"]
    assert all(f"/{label}/" in path for path, label in zip(paths, labels, strict=True))
    (tmp_path / "Greek").mkdir()
    (tmp_path / "Greek" / "alpha").symlink_to(pictures / "support" / "ant")
    assert support_pictures(tmp_path)[1] == ["Greek/alpha"]


@pytest.mark.parametrize(
    ("folders", "files", "message"),
    [
        ([], [], "for each class, such as {folder}/cat/1.jpg."),
        ([], ["1.png"], "holds files, but no class folders. Put pictures into a folder for each class"),
        (["ant"], ["bee/1.png"], "holds folders without pictures: ant. Fill or remove them."),
        (["ant"], ["ant/notes.txt", "bee/1.png"], "holds folders without pictures: ant. Fill or remove them."),
    ],
)
def test_a_folder_that_is_no_support_set_is_refused(tmp_path, folders, files, message):
    for folder in [*folders, *(file.rpartition("/")[0] for file in files)]:
        (tmp_path / folder).mkdir(exist_ok=True)
    for file in files:
        (tmp_path / file).touch()
    with pytest.raises(UserError, match=re.escape(message.format(folder=tmp_path))):
        support_pictures(tmp_path)


def test_what_is_not_there_and_folders_without_pictures_are_refused(tmp_path):
    (tmp_path / "notes.txt").touch()
    with pytest.raises(
        UserError, match=r"there is no folder .*nowhere. Name one that holds a folder of pictures for each"
    ):
        support_pictures(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"notes.txt is a file. Name the folder that holds a folder of pictures for ea"):
        support_pictures(tmp_path / "notes.txt")
    with pytest.raises(
        UserError, match=r"there is no file or folder .*nowhere.png. Name pictures, or folders that hold"
    ):
        query_pictures([tmp_path / "nowhere.png"])
    with pytest.raises(UserError, match=r"there are no pictures in the folder .* Name pictures, or folders that hold"):
        query_pictures([tmp_path])


@pytest.mark.parametrize(
    ("option", "path", "message"),
    [
        ("--query", "queries/notes.txt", "notes.txt is not a picture that Pillow can read."),
        ("--support", "support/ant", "ant holds files, but no class folders."),
        ("--plot", "plot.docx", "the ending .docx is not one of .png, .svg, .pdf"),
    ],
)
def test_mistakes_end_the_command_with_one_line(trained, pictures, option, path, message):
    options = {"--support": pictures / "support", "--query": pictures / "queries"} | {option: pictures / path}
    done = run(
        "maml_l2l.predict", "--model", trained[0] / "best.pth", *(word for pair in options.items() for word in pair)
    )
    assert_user_error(done, message)


def test_the_picture_shows_what_stays_readable_and_counts_the_rest(tmp_path):
    """The SVG names, in comments, the texts that it draws."""
    labels = [name for name in ("$x$", "a name of more than eighteen letters") for _ in range(11)]
    found = [{"path": f"a/{i}_$x$.png", "class": "$x$", "probability": 0.75, "runners_up": []} for i in range(43)]
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (40, 3, 8, 8), dtype=np.uint8))
    plots.plot_predictions(pixels[:22], labels, pixels, found, tmp_path / "plot.svg")
    drawing = (tmp_path / "plot.svg").read_text()
    texts = re.findall(r"<!-- (.*?) -->", drawing, re.DOTALL)
    assert "support set, as the network sees it (16 of 22 pictures, 6 left out)" in texts
    assert "queries and their predictions (40 of 43 pictures, 3 left out)" in texts
    assert {"$x$", "a name o...letters"} <= set(texts)
    assert sum("75.0 %" in text for text in texts) == 40
    assert [text for text in texts if text.endswith(".png")] == [f"{i}_$x$.png" for i in range(40)]
    assert drawing.count("<image") == 56


def test_classes_of_one_picture_each_stand_side_by_side(tmp_path):
    pixels = torch.zeros((9, 1, 8, 8), dtype=torch.uint8)
    labels, found = [f"class{i}" for i in range(9)], [{"path": "q.png", "class": "class0", "probability": 1.0}]
    for name, support in (("one.svg", labels), ("two.svg", [*labels[:8], "class0"])):
        plots.plot_predictions(pixels, support, pixels[:1], found, tmp_path / name)
    one, two = ((tmp_path / name).read_text() for name in ("one.svg", "two.svg"))
    height = [float(re.search(r'height="([\d.]+)pt"', drawing)[1]) for drawing in (one, two)]
    assert height[0] < 0.6 * height[1]
    assert [one.count(f"<!-- class{i} -->") for i in range(9)] == [2] + [1] * 8  # the query is called class0, too
    assert one.count("<image") == 10


def test_below_the_least_probability_the_answer_is_unsure(capsys):
    found = tables.prediction_rows(["a.png", "b.png"], ["cat", "dog"], np.array([[0.9, 0.1], [0.45, 0.55]]), 0.6)
    assert [row["unsure"] for row in found] == [False, True]
    lines = ["a.png: cat 90.0 % (dog 10.0 %)", "b.png: unsure (dog 55.0 %, cat 45.0 %)"]
    assert tables.predictions_text(found).splitlines() == lines
    done = run("maml_l2l.predict", "--support", "x", "--query", "y", "--min_probability", "2")
    assert (done.returncode, "--min_probability: expected a number from 0 to 1, found 2.0" in done.stderr) == (2, True)
