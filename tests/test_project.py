"""What stands around the code says what the code is: dependencies, versions, rooms, continuous integration."""

import ast
import configparser
import re
import sys
from pathlib import Path

import yaml

import maml_l2l
from tests.test_structure import ROOMS

ROOT = Path(__file__).parents[1]
SETUP = configparser.ConfigParser()
SETUP.read(ROOT / "setup.cfg")
# where a package installs under another name than it imports by
OTHER_NAMES = {
    "PIL": "pillow",
    "pydantic_core": "pydantic",
    "yaml": "pyyaml",
    "sklearn": "scikit-learn",
    "pillow_heif": "pillow-heif",
}


def declared(text):
    """The packages of a list of requirements."""
    lines = [line.strip() for line in text.splitlines()]
    return {re.match(r"[\w-]+", line)[0].lower() for line in lines if line and not line.startswith("#")}


def imported(folder):
    """The packages from elsewhere that the modules of a folder import, by the names they are installed by."""
    found = set()
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                found.add(node.module)
    found = {name.split(".")[0] for name in found} - set(sys.stdlib_module_names) - {"maml_l2l"}
    return {OTHER_NAMES.get(name, name) for name in found}


def test_what_the_package_imports_is_declared_and_nothing_else():
    required = declared(SETUP["options"]["install_requires"])
    extras = {name for text in SETUP["options.extras_require"].values() for name in declared(text)}
    found = imported(ROOT / "maml_l2l")
    assert required <= found <= required | extras


def test_python_versions_are_the_same_everywhere():
    stated = set(re.findall(r":: (3\.\d+)", SETUP["metadata"]["classifiers"]))
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "tests.yml").read_text())
    job = workflow["jobs"]["tests"]
    assert set(job["strategy"]["matrix"]["python"]) == stated == {"3.10", "3.11", "3.12", "3.13"}
    assert [step["run"] for step in job["steps"] if "run" in step] == [".ci/run"]  # the README's second command


def test_the_citation_and_the_changelog_name_the_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == maml_l2l.__version__
    assert citation["license"] == SETUP["metadata"]["license"]
    assert f"## {maml_l2l.__version__}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8").splitlines()


def test_contributing_lists_the_rooms_in_their_order():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    rows = [re.findall(r"`(\w+)`", row.split("|")[1]) for row in text.splitlines() if row.startswith("| `")]
    assert rows == [room for room in ROOMS if room != ["__init__"]]
