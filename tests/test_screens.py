"""What the commands write: files first, screens that may fail, never a device or what is read, and no forged lines."""

import os
import signal
import subprocess
import sys
import warnings

import pytest
import torch

from maml_l2l import commands
from maml_l2l.checkpoints.checkpoint import load_checkpoint
from maml_l2l.config import load_experiment
from maml_l2l.experiments.training import train
from maml_l2l.reports.tables import predictions_text
from maml_l2l.system.errors import UserError, printable
from maml_l2l.system.files import check_outputs, write_atomically, write_json
from maml_l2l.system.interruption import StopRequests
from tests.commands import ROOT, assert_user_error, run
from tests.test_training import TINY

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="pipes, links and devices as POSIX has them")
SHORT = ["train.iterations=2", "train.validate_every=1", "train.validate_tasks=2", "run.threads=1"]


@pytest.fixture(scope="module")
def trained(glyphs_root, tmp_path_factory):
    folder = tmp_path_factory.mktemp("screens") / "run"
    train(load_experiment(None, [*TINY, *SHORT, f"data.root={glyphs_root}"]), folder)
    return folder


def shell(line, folder):
    """`line` as a user types it, with the status of its first command."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHON": sys.executable}
    command = ["bash", "-c", f"{line}; exit ${{PIPESTATUS[0]}}"]
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=200, check=False
    )


@pytest.mark.parametrize(
    ("screen", "status", "error"),
    [
        ("| true", 1, ""),
        ("<&- >&- 2>&-", 0, ""),
        ("> /dev/full", 2, "error: cannot write to the standard output: No space left on device\n"),
        ("> /dev/full 2>&1", 2, ""),
    ],
)
def test_a_training_outlives_its_screen(glyphs_root, tmp_path, screen, status, error):
    settings = " ".join([*TINY, *SHORT, f"data.root={glyphs_root}"])
    done = shell(f"$PYTHON -m maml_l2l.train --set {settings} --run_dir run {screen}", tmp_path)
    assert done.returncode == status, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.endswith(error)
    assert load_checkpoint(tmp_path / "run/last.pth").iteration == 2
    for path in (tmp_path / "run").iterdir():  # a closed descriptor is the next one that a file gets
        assert b"validation accuracy" not in path.read_bytes()


def test_an_evaluation_writes_its_files_first(trained, tmp_path):
    command = f"$PYTHON -m maml_l2l.eval --model {trained}/best.pth --tasks 2 --steps 1 --json f.json --plot f.png"
    done = shell(f"{command} > /dev/full", tmp_path)
    assert done.returncode == 2
    assert "error: cannot write to the standard output" in done.stderr
    assert (tmp_path / "f.json").read_text().startswith("{")
    assert (tmp_path / "f.png").exists()


def test_characters_that_no_terminal_knows_are_printed_with_escapes():
    code = "import sys\nfrom maml_l2l import commands\ncommands.run(lambda: print('\\udce9 \\u00e9'))"
    environment = os.environ | {"PYTHONIOENCODING": "ascii", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, env=environment, check=False)
    assert (done.returncode, done.stdout) == (0, b"\\udce9 \\xe9\n")


# --- what may be written ---


@pytest.mark.parametrize("kind", ["device", "pipe", "link to a device", "folder"])
def test_what_is_no_regular_file_is_refused_and_stays(tmp_path, kind):
    path = tmp_path / "out"
    if kind == "device":
        try:
            os.mknod(path, 0o600 | 0o020000, os.makedev(1, 3))
        except PermissionError:
            pytest.skip("making devices needs root")
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to("/dev/null")
    before = path.lstat()
    for write in (lambda: write_json(path, {}), lambda: check_outputs([path])):
        with pytest.raises(UserError, match=r"cannot write .*out: it is a (pipe, a device or a socket|folder)"):
            write()
    assert path.lstat() == before


def test_a_link_to_a_file_is_replaced_and_its_target_stays(tmp_path):
    (tmp_path / "target").write_text("precious")
    (tmp_path / "out").symlink_to(tmp_path / "target")
    write_json(tmp_path / "out", {})
    assert (tmp_path / "target").read_text() == "precious" and not (tmp_path / "out").is_symlink()


def test_outputs_may_not_be_inputs_nor_one_another(tmp_path):
    (tmp_path / "pictures").mkdir()
    for name in ("m.pth", "pictures/1.png"):
        (tmp_path / name).write_text("precious")
    (tmp_path / "link.pth").symlink_to("m.pth")
    inputs = [tmp_path / "m.pth", tmp_path / "pictures"]
    for name in ("m.pth", "pictures/../m.pth", "link.pth", "pictures/1.png"):
        with pytest.raises(UserError, match=r"it is read, and would be lost\. Name another file"):
            check_outputs([tmp_path / name], inputs)
    with pytest.raises(UserError, match="is to be written twice"):
        check_outputs([tmp_path / "a", tmp_path / "pictures/../a"])
    check_outputs([tmp_path / "new/f.json", None, tmp_path / "pictures/new.png"], inputs)
    assert (tmp_path / "m.pth").read_text() == (tmp_path / "pictures/1.png").read_text() == "precious"


def test_commands_refuse_to_write_over_what_they_read(trained, shapes_root, tmp_path):
    model = tmp_path / "m.pth"
    model.write_bytes((trained / "best.pth").read_bytes())
    picture = tmp_path / "support/a/0.png"
    for name in ("a", "b"):
        (tmp_path / "support" / name).mkdir(parents=True)
        (tmp_path / "support" / name / "0.png").write_bytes((shapes_root / "class00/0.png").read_bytes())
    predict = ["maml_l2l.predict", "--model", model, "--support", tmp_path / "support", "--query", picture]
    before = [model.read_bytes(), picture.read_bytes()]
    for command in (
        ["maml_l2l.eval", "--model", model, "--json", model],
        [*predict, "--json", model],
        [*predict, "--plot", picture],
    ):
        assert_user_error(run(*command, folder=tmp_path), "it is read, and would be lost. Name another file.")
    assert [model.read_bytes(), picture.read_bytes()] == before


def test_leftovers_of_killed_processes_go_and_those_of_living_ones_stay(tmp_path):
    dead, other = tmp_path / ".f.json.0123abcd.tmp", tmp_path / ".f.json.mine.tmp"
    dead.write_text("half")
    other.write_text("mine")

    def write(file):
        (alive,) = [path for path in tmp_path.glob(".f.json.*.tmp") if path != other]
        write_json(tmp_path / "f.json", {"second": True})  # by another process, as far as locks go
        assert alive.exists()
        file.write(b"first")

    write_atomically(tmp_path / "f.json", write)
    assert (tmp_path / "f.json").read_text() == "first"
    assert not dead.exists() and other.exists()


@pytest.mark.parametrize("path", ["x" * 300, "x" * 5000, "no\udce9utf8/x"])
def test_paths_that_no_file_has_are_one_line(trained, tmp_path, path):
    for command in (
        ["maml_l2l.train", "--run_dir", path, "--set", "data.name=folder", "data.root=nowhere"],
        ["maml_l2l.train", "--config", path],
        ["maml_l2l.train", "--resume", path],
        ["maml_l2l.train", "--set", "data.name=folder", f"data.root={path}", "--run_dir", "r"],
        ["maml_l2l.train", "--save_to", path, "--set", "data.name=folder", "data.root=nowhere"],
        ["maml_l2l.eval", "--model", path],
        ["maml_l2l.predict", "--model", trained / "best.pth", "--support", path, "--query", "x"],
        ["maml_l2l.predict", "--model", trained / "best.pth", "--support", ".", "--query", path],
        ["maml_l2l.download", "--path", tmp_path / "d", "--source", path],
        ["maml_l2l.download", "--path", tmp_path / "d", "--source", f"~{path}"],
    ):
        assert_user_error(run(*command, folder=tmp_path), "")


def test_an_error_of_the_system_is_one_line(capsys):
    def refused():
        raise PermissionError(13, "Permission denied", "/a\nb\x1b[2J")

    with pytest.raises(SystemExit) as left:
        commands.run(refused)
    assert left.value.code == 2
    shown = "error: /a b\\x1b[2J: Permission denied. Name another path, or change its rights.\n"
    assert capsys.readouterr().err == shown


# --- what is printed ---


def test_no_name_forges_a_line_or_steers_the_terminal():
    assert printable("a\nb\x1b[2J\udce9\u202e\u00e9") == "a b\\x1b[2J\\udce9\\u202e\u00e9"
    others = [{"class": "o\rther", "probability": 0.25}]
    found = [{"path": "q\x1b.png", "class": "cat\n2.png: dog", "probability": 0.75, "runners_up": others}]
    assert predictions_text(found) == "q\\x1b.png: cat 2.png: dog 75.0 % (o ther 25.0 %)"


def test_a_run_folder_s_name_is_printed_with_escapes(glyphs_root, tmp_path):
    settings = [*TINY, *SHORT, f"data.root={glyphs_root}"]
    done = run("maml_l2l.train", "--set", *settings, "--run_dir", "r\n\x1b[2J", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "\x1b[2J" not in done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == "Done. Evaluate with: python -m maml_l2l.eval --model 'r \\x1b[2J/best.pth'"


def test_a_warning_of_a_command_is_one_line():
    code = "import warnings\nfrom maml_l2l import commands\ncommands.run(lambda: warnings.warn('a\\nb\\x1b[2J'))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert (done.returncode, done.stderr) == (0, "warning: a b\\x1b[2J\n")


# --- the end of a terminal ---


@pytest.mark.parametrize(("handler", "heeded"), [(signal.SIG_DFL, True), (signal.SIG_IGN, False)])
def test_the_end_of_the_terminal_is_a_request_to_stop_unless_it_is_ignored(handler, heeded):
    before = signal.signal(signal.SIGHUP, handler)  # nohup has it ignored
    try:
        with StopRequests("go on") as stop:
            stop.at_once = False
            os.kill(os.getpid(), signal.SIGHUP)
            assert stop.signal_number == (signal.SIGHUP if heeded else None)
            assert not heeded or "stopped by SIGHUP: go on" in str(stop.stopped())
        assert signal.getsignal(signal.SIGHUP) is handler
    finally:
        signal.signal(signal.SIGHUP, before)


def test_loading_leaves_the_filters_of_warnings_alone(trained, monkeypatch):
    """They are the process's: what one thread puts back another may be about to set."""
    entered = []
    enter = warnings.catch_warnings.__enter__

    def noted(self):
        entered.append(self)
        return enter(self)

    monkeypatch.setattr(warnings.catch_warnings, "__enter__", noted)
    assert isinstance(load_checkpoint(trained / "best.pth").weights["head.bias"], torch.Tensor)
    assert not entered
