"""Hostile inputs and killed runs, counted: `python -m benchmarks.attack --json benchmarks/results/attack.json`.

The cases are those of the tests named in `KINDS`, more of them than the suite takes, in a process of its own whose
memory is measured, beside a decoy of files that nobody has named. Then quickstart runs are killed at random moments and
resumed, and must end as one that was never killed, to the byte.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from benchmarks import common
from maml_l2l.system.machine import machine

ROOT = Path(__file__).parents[1]
KINDS = {  # how a test's file or name begins, and what its cases attack
    "test_fuzz.py::test_nested_values_as_a_config": "configs",
    "test_fuzz.py::test_a_shipped_config": "configs",
    "test_fuzz.py::test_snippets": "configs",
    "test_fuzz.py::test_a_checkpoint": "checkpoints",
    "test_fuzz.py::test_a_pickle": "checkpoints: pickles that call what they name",
    "test_fuzz.py::test_what_is_loaded": "checkpoints: archives with two lists of entries",
    "test_fuzz.py::test_an_archive": "archives to unpack",
    "test_fuzz.py::test_a_picture": "pictures",
    "test_fuzz.py::test_a_png": "pictures",
    "test_fuzz.py::test_pictures": "pictures",
    "test_fuzz.py::test_an_image_cache": "image caches",
    "test_fuzz.py::test_any_bytes": "files of a run folder",
    "test_fuzz.py::test_any_name": "names that steer a terminal",
    "test_fuzz.py::": "commands",
    "test_two_faced.py": "checkpoints: archives with two lists of entries",
    "test_checkpoint.py": "checkpoints",
    "test_archives.py": "archives to unpack, and servers",
    "test_omniglot.py": "folders of data: links, pipes, leftovers",
    "test_image_folder.py": "folders of data: links, pipes, leftovers",
    "test_run_safety.py": "run folders: races, links, pipes, damage",
    "test_screens.py": "screens, outputs and paths",
    "test_distributed.py": "processes that disagree or stand still",
}
FILES = sorted({f"tests/{key.partition('::')[0]}" for key in KINDS})
FUZZ_CASES = 7000  # of the suite
MAX_MEMORY, MAX_SECONDS = 4 * 2**30, 300  # of the process, and of one test
QUICK = [  # as many files are written as in a whole run, sooner
    *("train.iterations=30", "train.checkpoint_every=3", "train.validate_every=10", "train.validate_tasks=10"),
    *("run.threads=1", "run.device=cpu"),
]
RESULTS = ("last.pth", "best.pth", "metrics.jsonl", "curves.png", "config.yaml")


class Recorder:
    """A plugin of pytest that counts cases by kind: examples of hypothesis, and tests."""

    def __init__(self) -> None:
        self.cases: Counter[str] = Counter()
        self.failed: list[str] = []
        self.skipped: list[str] = []
        self.slowest = (0.0, "")

    def pytest_collection_modifyitems(self, items: list) -> None:
        """Have each example of a test of hypothesis counted."""
        for item in items:
            kind = next(kind for key, kind in KINDS.items() if key in item.nodeid)
            wrapped = getattr(item.obj, "hypothesis", None)
            if wrapped is None:
                self.cases[kind] += 1
            elif not hasattr(wrapped.inner_test, "counts"):
                wrapped.inner_test = self._counted(wrapped.inner_test, kind)

    def _counted(self, test, kind: str):
        def counts(*arguments, **named):
            self.cases[kind] += 1
            return test(*arguments, **named)

        counts.counts = True
        return counts

    def pytest_runtest_setup(self) -> None:
        """Let no test go on for ever."""
        signal.signal(signal.SIGALRM, signal.default_int_handler)
        signal.alarm(MAX_SECONDS)

    def pytest_runtest_logreport(self, report) -> None:
        """Note what failed and what took longest."""
        signal.alarm(0 if report.when == "teardown" else MAX_SECONDS)
        if report.failed:
            self.failed.append(report.nodeid)
        if report.skipped:
            self.skipped.append(report.nodeid)
        self.slowest = max(self.slowest, (report.duration, report.nodeid))


def _attack(sandbox: str, cases: int, found) -> None:
    """What the child runs: the tests, with their temporary files and everything else below `sandbox`."""
    os.environ |= {"MAML_L2L_FUZZ": str(cases / FUZZ_CASES), "TMPDIR": f"{sandbox}/tmp", "HOME": f"{sandbox}/home"}
    tempfile.tempdir = f"{sandbox}/tmp"
    os.chdir(ROOT)
    import pytest

    recorder = Recorder()
    options = ["-o", "addopts=", "-p", "no:cacheprovider", "-q", f"--basetemp={sandbox}/given"]
    status = pytest.main([*FILES, *options], plugins=[recorder])
    memory = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    children = 1024 * resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    found.put({"status": int(status), "memory": max(memory, children), **vars(recorder)})


def snapshot(folder: Path) -> dict[str, tuple]:
    """Everything that could change in a tree: kinds, rights, sizes, times and contents."""
    found = {}
    for path in sorted(folder.rglob("*")):
        status = path.lstat()
        content = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() and not path.is_symlink() else ""
        found[str(path)] = (status.st_mode, status.st_size, status.st_mtime_ns, content)
    return found


def decoy(folder: Path) -> Path:
    """A tree of files that an attack would like to change, beside and above what the tests are given."""
    for name in ("evil", "a", "b", "etc/passwd", "images_background/a/b/1.png", ".ssh/authorized_keys", "data.pkl"):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("decoy")
    return folder


def repository() -> str:
    """What git sees changed here."""
    return subprocess.run(["git", "status", "--porcelain"], cwd=ROOT, capture_output=True, text=True, check=True).stdout


def hostile_inputs(cases: int) -> dict:
    """Run the attacks; raise where one came through."""
    start, unchanged = time.monotonic(), repository()
    with tempfile.TemporaryDirectory() as name:
        sandbox = Path(name)
        for folder in ("tmp", "home"):
            (sandbox / folder).mkdir()
        before = snapshot(decoy(sandbox / "decoy"))
        context = multiprocessing.get_context("spawn")
        found = context.Queue()
        child = context.Process(target=_attack, args=(name, cases, found))
        child.start()
        result = found.get()
        child.join()
        same = snapshot(sandbox / "decoy") == before and repository() == unchanged
        at_home = [str(path.relative_to(sandbox)) for path in (sandbox / "home").rglob("*") if path.is_file()]
    seconds, slowest = result["slowest"]
    return {
        "cases": sum(result["cases"].values()),
        "cases by kind": dict(sorted(result["cases"].items())),
        "failed": result["failed"],
        "skipped": result["skipped"],
        "nothing else was written": same,
        "files written to the home folder": at_home,
        "most memory (MiB)": round(result["memory"] / 2**20),
        "longest test (s)": [round(seconds, 1), slowest],
        "seconds": round(time.monotonic() - start),
    }


def kills(number: int) -> dict:
    """Kill quickstart runs `number` times at random moments and resume them; compare with one never killed."""
    from tests.commands import started

    start, moments, killed, runs, different = time.monotonic(), random.Random(26), 0, 0, []
    with tempfile.TemporaryDirectory() as name:

        def begin(folder: Path):
            resume = (
                ["--resume"] if (folder / "config.yaml").exists() else ["--config", ROOT / "configs/quickstart.yaml"]
            )
            settings = ["--set", *QUICK, f"data.root={name}/data"]
            return started("maml_l2l.train", *resume, *settings, "--run_dir", folder, folder=name)

        for folder in ("first", "expected"):  # the first one draws the data
            began = time.monotonic()
            with begin(Path(name) / folder / "run") as (_, finish):
                done = finish(3600)
            assert done.returncode == 0, done.stderr
            whole = time.monotonic() - began
        while killed < number:
            folder, status = Path(name) / str(runs) / "run", None  # the curves bear the name of the folder
            runs += 1
            while status != 0:
                with begin(folder) as (process, _):
                    process.join(moments.uniform(0, 0.6 * whole))
                    process.kill()
                    process.join()
                status = process.exitcode
                if status not in (0, -signal.SIGKILL):
                    raise AssertionError(f"a resumed run ended with status {status}")
                killed += status != 0
            print(f"run {runs}: {killed} kills", flush=True)
            for result in RESULTS:
                if (folder / result).read_bytes() != (Path(name) / "expected/run" / result).read_bytes():
                    different.append(f"{folder.parent.name}/{result}")
            different += [str(path) for path in folder.glob(".*.tmp")]
    return {"kills": killed, "runs": runs, "different": different, "seconds": round(time.monotonic() - start)}


def main() -> None:
    """Attack, kill, report; status 1 where anything came through."""
    parser = common.parser(__doc__.partition("\n")[0])
    parser.add_argument("--cases", type=int, default=10_000, help="of the fuzz tests (default: 10,000)")
    parser.add_argument("--kills", type=int, default=100, help="SIGKILLs of quickstart runs (default: 100)")
    arguments = parser.parse_args()
    found = {"machine": machine(), "hostile inputs": hostile_inputs(arguments.cases), "kills": kills(arguments.kills)}
    common.write_json(arguments.json, found)
    inputs = found["hostile inputs"]
    print(common.table(["attacked", "cases"], [*inputs["cases by kind"].items(), ("all", inputs["cases"])]))
    print(json.dumps({key: value for key, value in found.items() if key != "machine"}, indent=1))
    held = not inputs["failed"] and inputs["nothing else was written"] and not found["kills"]["different"]
    sys.exit(0 if held and 2**20 * inputs["most memory (MiB)"] < MAX_MEMORY else 1)


if __name__ == "__main__":
    main()
