"""The public names: loaded when they are used, and none hidden by a command's module."""

import ast
import difflib
import inspect
import re
import subprocess
import sys

import pytest

import maml_l2l
from maml_l2l.backbones import registry
from tests.commands import ROOT

PAGE = (ROOT / "docs/library.md").read_text(encoding="utf-8")


def python(code):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_importing_the_package_loads_no_library():
    loaded = "[name for name in ('torch', 'numpy', 'pydantic') if name in sys.modules]"
    code = f"import sys, maml_l2l, maml_l2l.commands; print({loaded})"
    assert python(code) == "[]"


def test_every_public_name_is_there_and_documented():
    assert set(maml_l2l.__all__) <= set(dir(maml_l2l))
    for name in set(maml_l2l.__all__) - {"__version__"}:
        public = getattr(maml_l2l, name)
        assert public.__name__ == name
        assert inspect.getdoc(public)


@pytest.mark.parametrize(
    "code",
    [
        "import importlib; importlib.import_module('maml_l2l.train'); from maml_l2l import train as found",
        "from maml_l2l.train import main; import maml_l2l; found = maml_l2l.train",
    ],
)
def test_a_command_s_module_does_not_hide_the_function_of_its_name(code):
    assert python(f"{code}; print(found.__module__)") == "maml_l2l.experiments.training"


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'maml_l2l' has no attribute 'Traineer'"):
        maml_l2l.Traineer  # noqa: B018
    with pytest.raises(ImportError, match="cannot import name 'Traineer'"):
        from maml_l2l import Traineer  # noqa: F401


def test_rooms_can_still_be_set_and_patched(monkeypatch):
    monkeypatch.setattr(maml_l2l, "train", "patched")
    assert maml_l2l.train == "patched"
    monkeypatch.undo()
    assert callable(maml_l2l.train)


def test_an_engine_needs_no_data_set_and_a_task_batch_no_configuration():
    loaded = "[name for name in sys.modules if name.startswith('maml_l2l.{room}')]"
    assert python(f"import sys; from maml_l2l import VectorizedMAML; print({loaded.format(room='data')})") == "[]"
    assert python(f"import sys; from maml_l2l import TaskBatch; print({loaded.format(room='config')})") == "[]"


def test_the_page_describes_every_public_name():
    headings = re.findall(r"^### `(\w+)`$", PAGE, re.MULTILINE)
    assert sorted(headings) == sorted(maml_l2l.__all__)
    for name in set(headings) - {"__version__"}:
        signature = re.search(rf"^`{name}\((.*?)\)`", PAGE, re.MULTILINE | re.DOTALL).group(1)
        public = getattr(maml_l2l, name)
        parameters = inspect.signature(public).parameters
        shown = re.findall(r"(\w+)(?:=[^,]*)?(?:,|$)", signature.replace("*, ", ""))
        assert shown == list(parameters)[: len(shown)], name
        for parameter, default in re.findall(r"(\w+)=([^,]+)", signature):
            if default != "...":
                assert str(parameters[parameter].default) == default.strip('"'), name


def test_the_page_shows_how_the_example_s_loop_changes():
    source = (ROOT / "examples/from_learn2learn.py").read_text()
    functions = [node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef)]
    loop, fast = (ast.get_source_segment(source, function).splitlines() for function in functions)
    diff = list(difflib.unified_diff(loop, fast, n=99, lineterm=""))[3:]
    assert "```diff\n" + "\n".join(diff) + "\n```\n" in PAGE


@pytest.mark.parametrize("iterations", [2, pytest.param(50, marks=pytest.mark.slow)])
def test_the_first_lines_of_the_page_run(iterations, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(registry, "_factories", dict(registry._factories))
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    (code,) = re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    if iterations < 50:
        code = code.replace("train.iterations=50", f"train.iterations={iterations}").replace(
            "alphabets=5", "alphabets=3"
        )
        fewer = '"train.validate_tasks=2", "eval.tasks=2", "eval.steps=1"]'
        code = code.replace('"train.iterations', f'{fewer[:-1]}, "train.iterations')
    names = {}
    exec(code, names)
    assert maml_l2l.load_checkpoint("runs/resnet18/last.pth").iteration == iterations
    assert names["classifier"].classes_.tolist() == ["fish", "house", "snail", "star", "umbrella"]
