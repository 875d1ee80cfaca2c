"""Starting the commands, and what a user must see when they refuse."""

import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[1]

# Processes that have what takes seconds to import loaded when they start.
loaded = multiprocessing.get_context("spawn" if sys.platform == "win32" else "forkserver")
if sys.platform != "win32":
    loaded.set_forkserver_preload(
        ["maml_l2l.experiments.training", "maml_l2l.prediction", "matplotlib.backends.backend_agg"]
    )


def launch(*arguments, folder=ROOT):
    """`python -m ARGUMENTS` in `folder`, as a user types it."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", *map(str, arguments)]
    return subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=120, check=False, env=environment
    )


@contextmanager
def started(*arguments, folder=ROOT):
    """The same without the seconds that imports take, not waited for, at the head of a process group as under a shell.

    Gives the process and a function that waits for its end and returns its exit status and output.
    """
    with tempfile.TemporaryDirectory() as output:
        process = loaded.Process(target=_become, args=(list(map(str, arguments)), str(folder), output))
        process.start()

        def finish(timeout=120):
            process.join(timeout)
            assert process.exitcode is not None, f"{arguments} goes on after {timeout} s"
            out, err = ((Path(output) / name).read_text() for name in ("stdout", "stderr"))
            return subprocess.CompletedProcess(arguments, process.exitcode, out, err)

        try:
            yield process, finish
        finally:
            process.kill()
            process.join()


def run(*arguments, folder=ROOT):
    """What `launch` gives, sooner."""
    with started(*arguments, folder=folder) as (_, finish):
        return finish()


def _become(arguments, folder, output):
    os.setsid()
    os.chdir(folder)
    for stream, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(Path(output) / name, os.O_WRONLY | os.O_CREAT), stream)
    sys.argv = arguments
    runpy.run_module(arguments[0], run_name="__main__", alter_sys=True)


def assert_user_error(done, message):
    """One line on stderr, which starts with `error:` and holds `message`; exit status 2."""
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert message in done.stderr
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1


def wait_for_metrics(folder, lines):
    """Until training is on its way. Lines reach the file with each checkpoint."""
    deadline = time.monotonic() + 100
    while time.monotonic() < deadline:
        path = folder / "metrics.jsonl"
        if path.exists() and path.read_bytes().count(b"\n") >= lines:
            return
        time.sleep(0.02)
    raise AssertionError("training did not start")
