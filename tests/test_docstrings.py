"""The example in the docstring of each public name runs, where a short run on three alphabets of glyphs stands."""

import doctest
import importlib
import inspect
import shutil

import pytest

import maml_l2l
from maml_l2l import load_experiment, train
from maml_l2l.backbones import registry
from tests.commands import ROOT

NAMES = [name for name in maml_l2l.__all__ if name != "__version__"]
SMALL = ["data.name=glyphs", "data.alphabets=3", "task.ways=3", "model.filters=4", "train.meta_batch=2"]
RUN = [*SMALL, "train.iterations=4", "train.validate_tasks=2", "eval.tasks=10", "eval.steps=2"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, glyphs_root):
    """What the examples find in the working folder."""
    folder = tmp_path_factory.mktemp("examples")
    shutil.copytree(glyphs_root, folder / "data")
    shutil.copytree(ROOT / "configs", folder / "configs")
    train(load_experiment(None, [*RUN, f"data.root={folder / 'data'}"]), folder / "runs/glyphs")
    return folder


@pytest.mark.parametrize("name", NAMES)
def test_the_example_of_a_public_name_runs(name, folder, monkeypatch):
    monkeypatch.chdir(folder)
    monkeypatch.setattr(registry, "_factories", dict(registry._factories))
    public = getattr(maml_l2l, name)
    module = importlib.import_module(public.__module__)
    finder = doctest.DocTestFinder(recurse=False)
    (test,) = finder.find(public, name, module=module, globs={})
    assert test.examples, f"{name} has no example"
    assert f"maml_l2l.{name}" in inspect.getdoc(public)
    found = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS).run(test)
    assert found.failed == 0
