"""The command `python -m maml_l2l.download`, and how every command ends."""

import subprocess
import sys
import zipfile

import pytest

from maml_l2l import commands, download
from maml_l2l.system.errors import UserError


def run_command(*arguments):
    command = [sys.executable, "-m", "maml_l2l.download", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_help_imports_no_heavy_library():
    code = (
        "import sys\n"
        "from maml_l2l import download\n"
        "sys.argv = ['download', '--help']\n"
        "try:\n    download.main()\n"
        "except SystemExit:\n    print(sorted({'torch', 'torchvision', 'numpy', 'PIL'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert "--no-verify" in done.stdout
    assert done.stdout.splitlines()[-1] == "[]"


def test_the_command_unpacks_a_local_source_and_says_where_it_lies(tmp_path):
    for name in ("images_background", "images_evaluation"):
        with zipfile.ZipFile(tmp_path / f"{name}.zip", "w") as file:
            file.writestr(f"{name}/{name}_alphabet/character01/0001_01.png", b"not decoded here")
    done = run_command("--path", tmp_path / "data", "--source", tmp_path, "--no-verify")
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"Omniglot is in {tmp_path}/data/omniglot-py: 2 alphabets, 2 characters, 2 images.\n"
    assert done.stderr == ""


def test_a_user_error_is_one_line_on_stderr_and_status_2(tmp_path):
    done = run_command("--path", tmp_path, "--source", tmp_path / "nowhere")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert "nowhere/images_background.zip" in done.stderr


def test_a_path_that_cannot_be_written_is_status_2(tmp_path):
    (tmp_path / "file").write_text("")
    done = run_command("--path", tmp_path / "file" / "data", "--source", tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("error: cannot create the folder ") and done.stderr.count("\n") == 1


def test_options_reach_the_download(monkeypatch, capsys):
    calls = []
    monkeypatch.setattr("maml_l2l.data.omniglot.download_omniglot", lambda *arguments: calls.append(arguments))
    monkeypatch.setattr(sys, "argv", ["download"])
    download.main()
    monkeypatch.setattr(sys, "argv", ["download", "--path", "p", "--source", "http://s", "--no-verify"])
    download.main()
    assert calls == [("data", None, True), ("p", "http://s", False)]


def ending(main, capsys):
    with pytest.raises(SystemExit) as caught:
        commands.run(main)
    return caught.value.code, capsys.readouterr().err


def raiser(error):
    def main():
        raise error

    return main


def test_how_commands_end(capsys):
    assert ending(lambda: None, capsys) == (0, "")
    assert ending(raiser(UserError("first\nsecond")), capsys) == (2, "error: first second\n")
    assert ending(raiser(KeyboardInterrupt()), capsys) == (130, "interrupted\n")
    assert ending(raiser(SystemExit(3)), capsys) == (3, "")


def test_a_bug_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError):
        commands.run(lambda: print(1 / 0))


def test_a_reader_that_leaves_early_is_no_error():
    code = "from maml_l2l import commands\ncommands.run(lambda: print('x' * 10_000_000))"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait(timeout=60) == 1
