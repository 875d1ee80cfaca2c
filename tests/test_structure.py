"""Imports point one way: along the line from the config to the commands, never back."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "maml_l2l"
# Each room may import from those above it in this list, and its own files from one another.
ROOMS = [
    ["system"],
    ["config", "pretrained"],
    ["data"],
    ["tasks"],
    ["backbones"],
    ["algorithms"],
    ["checkpoints"],
    ["reports"],
    ["experiments", "prediction"],
    ["commands"],
    ["train", "eval", "predict", "calibrate", "download"],
    ["__init__"],  # the public names, which load their rooms when they are used; no room imports from it
]
RANK = {name: rank for rank, names in enumerate(ROOMS) for name in names}
FILES = sorted(PACKAGE.rglob("*.py"))


def layer(path):
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_layers(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "maml_l2l":
            inner = node.module.split(".")[1:]
            yield from inner[:1] or (alias.name for alias in node.names)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_one_way(path):
    back = [name for name in imported_layers(path) if RANK[name] > RANK[layer(path)]]
    assert not back, f"{path.name} imports {back}, which lie behind it"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_files_stay_short_and_functions_too(path):
    text = path.read_text()
    assert len(text.splitlines()) <= 260
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno - node.lineno < 45, node.name
