"""The commands as a user types them: what they print, their exit status, and how fast help comes."""

import dataclasses
import json
import shutil
import subprocess
import sys

import pytest
import torch

from maml_l2l import __version__, commands
from maml_l2l.checkpoints.checkpoint import load_checkpoint, save_checkpoint
from tests.commands import ROOT, assert_user_error, launch, run
from tests.test_training import TINY


@pytest.fixture(scope="module")
def trained(glyphs_root, tmp_path_factory):
    folder = tmp_path_factory.mktemp("commands")
    settings = [*TINY, f"data.root={glyphs_root}"]
    done = launch("maml_l2l.train", "--set", *settings, "--run_dir", folder / "run", folder=folder)
    return folder / "run", done


@pytest.mark.parametrize("command", ["train", "eval", "predict", "calibrate", "download"])
def test_help_is_quick_and_does_not_import_torch(command):
    code = (
        f"import sys, time\nfrom maml_l2l.{command} import main\nsys.argv = ['{command}', '--help']\n"
        "try:\n    main()\nexcept SystemExit:\n    print('torch' in sys.modules, 'learn2learn' in sys.modules)\n"
        "print(time.process_time())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    *usage, imported, seconds = done.stdout.splitlines()
    assert imported == "False False"
    assert float(seconds) < 1
    assert f"usage: python -m maml_l2l.{command}" in usage[0]


@pytest.mark.parametrize("command", ["train", "eval", "predict", "calibrate", "download"])
def test_every_command_tells_its_version(command):
    done = run(f"maml_l2l.{command}", "--version")
    assert (done.returncode, done.stdout) == (0, f"maml_l2l {__version__}\n"), done.stderr


@pytest.mark.parametrize("command", [["eval"], ["predict", "--support", "x", "--query", "x"], ["train", "--set"]])
def test_a_checkpoint_may_be_named_and_a_wrong_name_is_a_user_error(command, glyphs_root, tmp_path):
    settings = f"model.pretrained=omniglot_9w9s data.name=glyphs data.alphabets=3 data.root={glyphs_root}".split()
    options = [*settings, "--run_dir", tmp_path] if command[0] == "train" else ["--model", "omniglot_9w9s"]
    done = run(f"maml_l2l.{command[0]}", *command[1:], *options)
    assert_user_error(done, "there is no pretrained network omniglot_9w9s. Give the path of a .pth file, or one of the")


def test_training_prints_validations_and_the_next_command_and_no_notice_of_gym(trained):
    folder, done = trained
    assert done.returncode == 0, done.stderr
    assert "meta-iteration 3: validation accuracy" in done.stdout
    assert f"python -m maml_l2l.eval --model {folder / 'best.pth'}" in done.stdout
    assert "gym" not in done.stderr.lower()


def test_evaluation_needs_nothing_but_the_checkpoint(trained, tmp_path):
    folder, _ = trained
    report, picture = tmp_path / "report.json", tmp_path / "report.png"
    command = ["maml_l2l.eval", "--model", folder / "best.pth", "--tasks", 12, "--json", report, "--plot", picture]
    first = launch(*command)
    assert first.returncode == 0, first.stderr
    assert "3-way 1-shot, 1 query a class, 12 tasks, test classes, batch statistics" in first.stdout
    assert len(first.stdout.splitlines()) == 1 + 1 + 11
    content = json.loads(report.read_text())
    assert list(content["accuracy"]) == [str(step) for step in range(11)]
    assert {key: content[key] for key in ("tasks", "ways", "shots", "queries", "split", "normalisation")} == {
        "tasks": 12,
        "ways": 3,
        "shots": 1,
        "queries": 1,
        "split": "test",
        "normalisation": "batch",
    }
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert run(*command).stdout == first.stdout


def test_evaluation_takes_other_task_sizes(trained):
    folder, _ = trained
    sizes = ["--n_way", 2, "--k_shot", 3, "--n_query", 4, "--steps", 1, "--split", "val", "--tasks", 5]
    done = run("maml_l2l.eval", "--model", folder / "best.pth", *sizes)
    assert done.returncode == 0, done.stderr
    assert "2-way 3-shot, 4 queries a class, 5 tasks, val classes" in done.stdout
    assert len(done.stdout.splitlines()) == 1 + 1 + 2


def test_evaluation_reports_either_normalisation(trained, tmp_path):
    folder, _ = trained
    found = {}
    for normalisation in ("batch", "support"):
        report = tmp_path / f"{normalisation}.json"
        options = ["--normalisation", normalisation, "--tasks", 30, "--steps", 1, "--json", report]
        done = run("maml_l2l.eval", "--model", folder / "best.pth", *options)
        assert f"test classes, {normalisation} statistics" in done.stdout, done.stderr
        found[normalisation] = json.loads(report.read_text())
        assert found[normalisation]["normalisation"] == normalisation
    assert found["batch"]["accuracy"] != found["support"]["accuracy"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--n_way", 4], "the checkpoint's head has 3 outputs, so it serves tasks of up to 3 classes, not of 4"),
        (["--tasks", -5], "the command line: `eval.tasks` should be greater than or equal to 2, found -5"),
        (
            ["--k_shot", 15, "--n_query", 6],
            "task.shots + task.queries is 15 + 6 = 21, but 26 of the 26 classes of the test split",
        ),
    ],
)
def test_bad_evaluations_are_user_errors(trained, arguments, message):
    folder, _ = trained
    assert_user_error(run("maml_l2l.eval", "--model", folder / "best.pth", *arguments), message)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["maml_l2l.train", "--config", "none.yaml"], "cannot read the config none.yaml: No such file or directory"),
        (["maml_l2l.train", "--set", "task.way=5"], "unknown key `task.way` (did you mean `task.ways`?)"),
        (["maml_l2l.eval", "--model", "none.pth"], "there is no checkpoint none.pth"),
        (["maml_l2l.eval", "--model", "README.md"], "README.md is not a checkpoint, or is damaged"),
    ],
)
def test_bad_input_is_a_user_error(arguments, message):
    assert_user_error(run(*arguments), message)


def test_a_used_run_folder_is_a_user_error(trained):
    folder, _ = trained
    assert_user_error(run("maml_l2l.train", "--run_dir", folder), "already holds a run, which is never overwritten")


@pytest.mark.parametrize("flags", [["--resume", "RUN"], ["--resume", "--run_dir", "RUN"]])
def test_a_run_is_resumed_as_it_was_configured_and_from_data_that_have_moved(trained, glyphs_root, tmp_path, flags):
    shutil.copytree(trained[0], tmp_path / "run")
    (tmp_path / "data").symlink_to(glyphs_root)
    flags = [str(tmp_path / "run") if flag == "RUN" else flag for flag in flags]
    done = run("maml_l2l.train", *flags, "--dataset_path", tmp_path / "data", "--set", "train.iterations=7")
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["iteration"] for line in lines if "loss" in line] == [1, 2, 3, 4, 5, 6, 7]


def test_resuming_nothing_is_a_user_error():
    assert_user_error(run("maml_l2l.train", "--resume"), "--resume names no run, and nothing else does. Give it the fo")


def test_an_evaluation_uses_this_machine_whatever_trained_the_checkpoint(trained, tmp_path):
    checkpoint = load_checkpoint(trained[0] / "best.pth")
    config = {**checkpoint.config, "run": {**checkpoint.config["run"], "device": "cuda:7", "threads": 1000}}
    save_checkpoint(dataclasses.replace(checkpoint, config=config), tmp_path / "x.pth")
    sizes = ["--tasks", 4, "--steps", 1]
    found, expected = (
        run("maml_l2l.eval", "--model", path, *sizes) for path in (tmp_path / "x.pth", trained[0] / "best.pth")
    )
    assert (found.returncode, found.stdout) == (0, expected.stdout), found.stderr


def test_ci_runs_the_test_command_of_the_readme():
    command = (ROOT / ".ci" / "run").read_text().splitlines()[-1]
    assert "pytest" in command
    assert command in (ROOT / "README.md").read_text().splitlines()


def test_missing_learn2learn_is_a_user_error_that_says_how_to_install_it():
    code = (
        "import sys\nsys.modules['learn2learn'] = None\n"
        "from maml_l2l import commands\nfrom maml_l2l.train import main\nsys.argv = ['train']\ncommands.run(main)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert_user_error(done, "pip install learn2learn==0.2.0 --config-settings=--build-option=build_ext")


def test_too_small_a_gpu_is_a_user_error_and_other_failures_keep_their_traceback(capsys):
    def too_large():
        raise torch.OutOfMemoryError(
            "CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 holds 7.79 GiB\nof which 5 are free."
        )

    def broken():
        raise RuntimeError("a bug")

    with pytest.raises(SystemExit) as left:
        commands.run(too_large)
    assert left.value.code == 2
    assert capsys.readouterr().err == (
        "error: CUDA out of memory. Tried to allocate 20.00 GiB. Work on fewer tasks at once: "
        "--set algorithm.task_chunk=1, or more; or keep fewer inner steps: --set algorithm.recompute=sqrt.\n"
    )
    with pytest.raises(RuntimeError, match="a bug"):
        commands.run(broken)
