"""Names of any script and any sign, `~` in paths, pictures that cannot be read, memory that does not suffice."""

import argparse
import importlib
import io
import os
import re
import signal
import sys
import warnings
from pathlib import Path

import hypothesis
import matplotlib
import numpy as np
import pytest
import torch
import yaml
from hypothesis import strategies as st
from matplotlib.figure import Figure
from PIL import Image
from pydantic import BaseModel

from maml_l2l import commands, load_experiment, predict
from maml_l2l import eval as eval_command
from maml_l2l.checkpoints.checkpoint import load_checkpoint, save_checkpoint
from maml_l2l.config import documented_keys
from maml_l2l.data.class_folders import find_classes
from maml_l2l.data.folder import load_folder
from maml_l2l.data.pictures import UnreadablePictures, read_picture
from maml_l2l.experiments import run_folder
from maml_l2l.experiments.training import train
from maml_l2l.prediction import FewShotClassifier
from maml_l2l.pretrained import find_checkpoint
from maml_l2l.reports import lettering, plots
from maml_l2l.reports.lettering import draw_as_written
from maml_l2l.system.errors import UserError
from maml_l2l.system.files import make_folder
from maml_l2l.system.messages import on_screen
from maml_l2l.train import _as_yaml
from tests.test_image_folder import CLASSES, damage, fill, settings, without_decoding
from tests.test_pictures import folder
from tests.test_structure import ROOMS
from tests.test_training import TINY

SHORT = ["train.iterations=2", "train.validate_every=2", "train.validate_tasks=2", "run.threads=1"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A tiny network on a folder of pictures whose names are in Latin-1 and in other scripts."""
    root = tmp_path_factory.mktemp("model")
    classes = [os.fsdecode(b"caf\xe9"), "日本", "a\nb\x1b[2J", "$x_", *(f"class{number}" for number in range(6))]
    fill(root / "d", classes, pictures=2)
    keys = ["data.name=folder", "data.image_size=10", "model.filters=4", "task.ways=2", "train.meta_batch=1"]
    train(load_experiment(None, [*keys, *SHORT, f"data.root={root / 'd'}"]), root / "a$5_vs_$6", root / "m.pth")
    return root


def command(monkeypatch, capsys, module, *arguments):
    """The exit status of a command, and what it prints, in this process."""
    monkeypatch.setattr(sys, "argv", [module.__name__, *map(str, arguments)])
    with pytest.raises(SystemExit) as left:
        commands.run(module.main)
    return left.value.code, capsys.readouterr()


# --- the home folder ---


def options():
    """Every option of every command that takes a path, with its parser's type."""
    for name in ROOMS[-2]:
        made = []
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(argparse.ArgumentParser, "parse_args", lambda self, made=made: made.append(self) or 1 / 0)
            with pytest.raises(ZeroDivisionError):
                importlib.import_module(f"maml_l2l.{name}").main()
        for action in made[0]._actions:
            if re.search("FILE|DIR|CHECKPOINT|DATA|FOLDER", str(action.metavar)):
                yield pytest.param(action, id=f"{name} {action.option_strings[0]}")


@pytest.mark.parametrize("action", list(options()))
def test_every_option_that_is_a_path_knows_the_home_folder(action, monkeypatch):
    monkeypatch.setenv("HOME", "/home/somebody")
    assert str(action.type("~/x.pth")) == "/home/somebody/x.pth"
    assert str(action.type("x~/y")) == "x~/y"


def test_every_key_that_is_a_path_knows_the_home_folder(monkeypatch):
    monkeypatch.setenv("HOME", "/home/somebody")
    paths = [
        f"{section}.{name}"
        for section, name, field in documented_keys()
        if "checked_path" in repr(field.metadata) + repr(field.annotation)
    ]
    assert {"data.root", "data.source", "model.pretrained"} <= set(paths)
    for key in paths:
        of_library = ["model.name=timm:tf_efficientnet_lite0", "data.name=folder"] if key == "model.weights" else []
        experiment = load_experiment(None, [f"{key}=~/x", *of_library])
        section, name = key.split(".")
        found: BaseModel = getattr(experiment, section)
        assert getattr(found, name) == "/home/somebody/x"


def test_functions_know_the_home_folder(model, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(model)
    save_checkpoint(load_checkpoint(model / "m.pth"), "~/m.pth")
    assert find_checkpoint("~/m.pth") == find_checkpoint(Path("~/m.pth")) == tmp_path / "m.pth"
    assert load_checkpoint("~/m.pth").iteration == 2
    Image.new("L", (9, 9)).save(tmp_path / "p.png")
    assert read_picture("~/p.png", folder(image_size=9)).shape == (3, 9, 9)
    (tmp_path / "c.yaml").write_text("task:\n  ways: 3\n")
    assert load_experiment("~/c.yaml").task.ways == 3
    train(load_checkpoint("~/m.pth").experiment, "~/run", "~/best.pth")
    assert (tmp_path / "run/best.pth").exists() and (tmp_path / "best.pth").exists()
    assert not (model / "~").exists()


def test_no_folder_is_called_by_the_sign_for_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"cannot create the folder ~/x: there is no home folder that ~ stands for"):
        make_folder(Path("~/x"))
    assert list(tmp_path.iterdir()) == []


# --- names on the screen and in files ---


def test_names_of_any_sign_are_trained_on_and_predicted(model, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    expected = sorted(path.name for path in (model / "d").iterdir())
    assert sorted(name for part in load_checkpoint(model / "m.pth").split.values() for name in part) == expected
    support = fill(tmp_path / "s", [os.fsdecode(b"caf\xe9"), "a\nb\x1b[2J"], pictures=1)
    outputs = ["--json", "f.json", "--plot", "f.png"]
    code, shown = command(
        monkeypatch, capsys, predict, "--model", model / "m.pth", "--support", support, "--query", support, *outputs
    )
    assert code == 0 and (tmp_path / "f.json").read_bytes().isascii() and (tmp_path / "f.png").exists()
    assert "\x1b" not in shown.out + shown.err and shown.err == "" and len(shown.out.splitlines()) == 2
    assert "caf\\udce9" in shown.out and "a b\\x1b[2J" in shown.out


def test_a_screen_of_another_encoding_gets_escapes_after_the_files_are_written(model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("日本.png").write_bytes((model / "d/class0/0.png").read_bytes())
    support, written = fill(tmp_path / "s", ["ant", "bee"], pictures=1), io.BytesIO()
    given = ["--model", model / "m.pth", "--support", support, "--query", "日本.png", "--json", "f.json"]
    monkeypatch.setattr(sys, "argv", ["predict", *map(str, given)])
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="cp1252"))
    with pytest.raises(SystemExit) as left:
        commands.run(predict.main)
    assert left.value.code == 0 and Path("f.json").exists()
    assert written.getvalue().startswith(b"\\u65e5\\u672c.png: ")


# --- names in plots ---


def texts(path):
    return re.findall(r"<!-- (.*?) -->", path.read_text(), re.DOTALL)


@pytest.mark.parametrize(("name", "usetex"), [("a$5_vs_$6", False), ("$\\frac{ # ~ %", True)])
def test_no_name_is_markup_in_any_plot(model, tmp_path, name, usetex):
    curves, side_by_side, rows = (tmp_path / f"{number}.svg" for number in range(3))
    pixels = torch.zeros(2, 1, 8, 8, dtype=torch.uint8)
    found = [{"path": f"{name}/{name}", "class": name, "probability": 1.0, "runners_up": []}]
    with matplotlib.rc_context({"text.usetex": usetex}):
        plots.plot_curves(model / "a$5_vs_$6/metrics.jsonl", curves, title=name)
        for path, labels in ((side_by_side, [name, "b"]), (rows, [name, name])):
            plots.plot_predictions(pixels, labels, pixels[:1], found, path)
    assert [texts(path).count(name) for path in (curves, side_by_side, rows)] == [1, 3, 3]


def test_a_run_of_any_name_draws_its_curves(model):
    assert (model / "a$5_vs_$6/curves.png").stat().st_size > 0


def drawn(*written):
    figure = Figure()
    made = [figure.text(0.1, 0.1, one) for one in written]
    draw_as_written(figure)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure.canvas.draw()  # a sign without a font is a warning
    return made


def test_signs_that_the_font_lacks_come_from_another_font():
    """Matplotlib brings STIX with it, which has signs that DejaVu has not."""
    stix = next(font.fname for font in matplotlib.font_manager.fontManager.ttflist if font.name == "STIXGeneral")
    usual = matplotlib.font_manager.findfont(matplotlib.font_manager.FontProperties(family=["sans-serif"]))
    signs = "".join(map(chr, range(0x2000, 0x2C00)))
    (sign, *_) = sorted(lettering._known(stix, signs) - lettering._known(usual, signs))
    plain, other = drawn("plain", f"x {sign} y")
    assert plain.get_fontfamily() == ["sans-serif"]
    assert other.get_text() == f"x {sign} y" and len(other.get_fontfamily()) == 2


def test_signs_that_no_font_has_become_escapes(monkeypatch):
    monkeypatch.setattr(matplotlib.font_manager.fontManager, "ttflist", [])
    lettering._families_for.cache_clear()
    (text,) = drawn("日本 a\U00013000")
    assert text.get_text() == "\\u65e5\\u672c a\\U00013000"
    lettering._families_for.cache_clear()


def test_a_font_file_that_is_gone_or_damaged_does_not_matter(tmp_path):
    (tmp_path / "damaged.ttf").write_text("no font")
    for name in ("gone.ttf", "damaged.ttf"):
        assert lettering._known(str(tmp_path / name), "abc") == set()


# --- pictures that cannot be read ---


@pytest.fixture
def asked(tmp_path):
    """Support and queries, some of which are no pictures."""
    fill(tmp_path / "s", ["ant", "bee"], pictures=2)
    fill(tmp_path / "q", ["."], pictures=3)
    for name in ("q/IMG_1.AAE", "q/damaged.png", "s/bee/notes"):
        (tmp_path / name).write_text("no picture")
    return tmp_path


def test_all_queries_that_cannot_be_read_are_named_at_once(model, asked, monkeypatch, capsys):
    (asked / "s/bee/notes").unlink()
    given = ["--model", model / "m.pth", "--support", asked / "s", "--query", asked / "q"]
    code, shown = command(monkeypatch, capsys, predict, *given)
    assert code == 2 and shown.out == "" and shown.err.count("\n") == 1
    assert shown.err.startswith("error: 2 of 5 pictures cannot be read (predict --skip_damaged leaves them out): ")
    assert "IMG_1.AAE is not a picture" in shown.err and "damaged.png is not a picture" in shown.err


def test_on_request_a_prediction_goes_on_without_them(model, asked, monkeypatch, capsys):
    given = ["--model", model / "m.pth", "--support", asked / "s", "--query", asked / "q", "--skip_damaged"]
    code, shown = command(monkeypatch, capsys, predict, *given)
    assert code == 0 and len(shown.out.splitlines()) == 3
    left_out = [line.partition(":")[2] for line in shown.err.splitlines()]
    assert [line.partition(":")[0] for line in left_out] == [" left out 1 of 5 pictures", " left out 2 of 5 pictures"]
    assert "s/bee/notes is not a picture" in left_out[0]


def test_where_no_picture_can_be_read_nothing_goes_on(model, asked, monkeypatch, capsys):
    given = ["--model", model / "m.pth", "--support", asked / "s", "--query", asked / "q/damaged.png", "--skip_damaged"]
    code, shown = command(monkeypatch, capsys, predict, *given)
    assert (code, shown.out) == (2, "")
    assert "error: none of 1 pictures can be read: " in shown.err and "damaged.png is not a picture" in shown.err


def test_a_class_that_loses_its_last_picture_is_refused(model, asked, monkeypatch, capsys):
    for picture in (asked / "s/ant").iterdir():
        picture.write_text("no picture")
    given = ["--model", model / "m.pth", "--support", asked / "s", "--query", asked / "q", "--skip_damaged"]
    code, shown = command(monkeypatch, capsys, predict, *given)
    assert (code, shown.out) == (2, "")
    assert "error: no picture of ant can be read. Replace one, or remove the folder." in shown.err


@pytest.mark.parametrize("name", ["eval", "predict"])
def test_the_ending_of_a_picture_is_looked_at_before_the_work(model, asked, monkeypatch, capsys, name):
    program, options = eval_command, []
    if name == "predict":
        program, options = predict, ["--support", asked / "s", "--query", asked / "q"]
    monkeypatch.setattr("maml_l2l.checkpoints.checkpoint.load_pretrained", None)  # nothing is read yet
    code, shown = command(monkeypatch, capsys, program, "--model", model / "m.pth", *options, "--plot", "a.bmp")
    assert code == 2
    assert shown.err == "error: cannot write a picture as a.bmp: the ending .bmp is not one of .png, .svg, .pdf.\n"


def test_one_picture_that_cannot_be_read_has_its_own_message_and_several_have_their_numbers(model):
    classifier = FewShotClassifier(model / "m.pth").fit(np.zeros((2, 9, 9), np.uint8), ["a", "b"])
    with pytest.raises(UserError, match=r"^the picture nowhere.png cannot be read: No such file"):
        classifier.predict(["nowhere.png"])
    with pytest.raises(
        UnreadablePictures, match=r"2 of 3 pictures cannot be read .*: the picture a.png .*images\[2\] is"
    ):
        classifier.predict(["a.png", np.zeros((9, 9), np.uint8), None])


def test_a_class_without_a_readable_picture_is_decoded_once_too(tmp_path, monkeypatch):
    damage(fill(tmp_path, CLASSES, pictures=1))
    data = settings(tmp_path, skip_damaged=True, image_size=600, max_memory=1)
    assert load_folder(data).class_sizes() == [0, 1, 1, 1]
    without_decoding(monkeypatch)
    assert load_folder(data).class_sizes() == [0, 1, 1, 1]


def test_damaged_metadata_are_no_warning_of_a_command(tmp_path, capsys):
    Image.new("L", (9, 9)).save(tmp_path / "p.jpg", exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + bytes(20))
    with on_screen():
        read_picture(tmp_path / "p.jpg", folder(image_size=9))
    assert capsys.readouterr().err == ""


# --- from another working folder ---


def test_the_path_of_the_checkpoint_is_said_to_be_its_own(model, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(model)
    checkpoint = load_checkpoint("m.pth")
    config = {**checkpoint.config, "data": {**checkpoint.config["data"], "root": "d"}}
    save_checkpoint(type(checkpoint)(**{**vars(checkpoint), "config": config}), tmp_path / "m.pth")
    monkeypatch.chdir(tmp_path)
    sizes = ["--tasks", 2, "--steps", 0]
    code, shown = command(monkeypatch, capsys, eval_command, "--model", "m.pth", *sizes)
    assert code == 2 and shown.err.count("\n") == 1
    assert "error: there is no folder d. " in shown.err
    assert "This is the path that the checkpoint was trained with" in shown.err and "--path" in shown.err
    code, shown = command(monkeypatch, capsys, eval_command, "--model", "m.pth", *sizes, "--path", "elsewhere")
    assert code == 2 and "the path that the checkpoint was trained with" not in shown.err
    code, _ = command(monkeypatch, capsys, eval_command, "--model", "m.pth", *sizes, "--path", model / "d")
    assert code == 0


def test_classes_that_have_moved_are_evaluated_as_those_of_the_checkpoint(model, tmp_path, monkeypatch, capsys):
    (tmp_path / "up").mkdir()
    (tmp_path / "up/d").symlink_to(model / "d")
    given = ["--model", model / "m.pth", "--tasks", 2, "--steps", 0, "--path", tmp_path / "up"]
    code, shown = command(monkeypatch, capsys, eval_command, *given)
    assert code == 0
    assert "up holds the checkpoint's classes under other names, d/" in shown.out
    assert ": the 2 test classes among them are evaluated\n" in shown.out
    assert len(find_classes(tmp_path / "up").class_names) == 10


# --- memory ---


def exhausted(kind):
    if kind == "PyTorch":
        torch.empty(2**50)
    elif kind == "NumPy":
        np.empty(2**50)
    elif kind == "Python":
        raise MemoryError
    elif kind == "Windows":
        raise RuntimeError(
            "[enforce fail] data. DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes."
        )
    elif kind == "system":
        raise OSError(12, "Cannot allocate memory")
    else:
        raise RuntimeError("unable to mmap 99 bytes from file </tmp/x>: Cannot allocate memory (12)")


@pytest.mark.parametrize("kind", ["PyTorch", "NumPy", "Python", "Windows", "system", "mapping"])
def test_too_small_a_memory_is_one_line_that_names_the_keys_that_help(capsys, kind):
    with pytest.raises(SystemExit) as left:
        commands.run(lambda: exhausted(kind))
    shown = capsys.readouterr().err
    assert left.value.code == 2 and shown.count("\n") == 1 and shown.startswith("error: ")
    assert "--set algorithm.task_chunk=1" in shown and "--set algorithm.recompute=sqrt" in shown
    assert "memory" in shown or "Unable to allocate" in shown


# --- Ctrl-C ---


def test_ctrl_c_twice_in_a_program_is_a_keyboard_interrupt_and_the_run_goes_on(glyphs_root, tmp_path, monkeypatch):
    experiment = load_experiment(None, [*TINY, *SHORT, "train.iterations=4", f"data.root={glyphs_root}"])
    log, before = run_folder.RunFolder.log, signal.getsignal(signal.SIGINT)

    def interrupted(self, iteration, **values):
        log(self, iteration, **values)
        if iteration == 2:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(run_folder.RunFolder, "log", interrupted)
        with pytest.raises(KeyboardInterrupt) as caught:
            train(experiment, tmp_path / "run")
    assert caught.type is KeyboardInterrupt and signal.getsignal(signal.SIGINT) is before
    train(experiment, tmp_path / "run", resume=True)
    assert load_checkpoint(tmp_path / "run/last.pth").iteration == 4


@hypothesis.given(st.text(st.one_of(st.characters(), st.sampled_from("\\ud\"'😀\udce9"))))
@hypothesis.example("fotos/📁")
@hypothesis.example("\\ud83d\\udcc1")
def test_a_flag_is_the_same_path_after_yaml(path):
    assert yaml.safe_load(_as_yaml(path)) == path
