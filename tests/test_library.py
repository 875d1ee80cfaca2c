"""The public names: loaded when they are used, and none hidden by a command's module."""

import inspect
import subprocess
import sys

import pytest

import maml_l2l
from tests.commands import ROOT


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
        "import maml_l2l.train; import maml_l2l; found = maml_l2l.train",
        "import importlib; importlib.import_module('maml_l2l.train'); from maml_l2l import train as found",
        "from maml_l2l import train as found; import maml_l2l.train",
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
