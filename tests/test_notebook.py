"""The notebook runs from its first cell to its last, and shows pictures and right names."""

import os
import re
import shutil
import sys
from pathlib import Path

import pytest

nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")

NOTEBOOK = Path(__file__).parents[1] / "notebooks" / "quickstart.ipynb"


def with_settings(**settings):
    """The notebook with other values in its cell of settings."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    cell = next(cell for cell in notebook.cells if cell.source.startswith("ITERATIONS ="))
    assert all(f"{name} = " in cell.source for name in settings)
    cell.source = "\n".join(f"{name} = {value}" for name, value in settings.items())
    return notebook


def run(notebook, folder):
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MPLBACKEND": "module://matplotlib_inline.backend_inline"}
    client = nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(folder)}})
    client.create_kernel_manager()
    client.km.kernel_spec.argv[0] = sys.executable  # whatever kernels this machine has installed
    client.execute(env=environment)
    return [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]


def test_the_notebook_runs_and_names_the_drawings(tmp_path):
    notebook = with_settings(ITERATIONS=4, TASKS=4, DATA=repr(str(tmp_path)))
    outputs = run(notebook, NOTEBOOK.parent)
    pictures = [output for output in outputs if "image/png" in output.get("data", {})]
    assert len(pictures) == 5
    printed = "".join(output.text for output in outputs if output.output_type == "stream")
    assert "best.pth" in printed and "1 inner steps: " in printed
    assert int(re.search(r"(\d+) of 15 drawings are named rightly", printed)[1]) >= 12


def test_the_notebook_alone_says_what_to_change(tmp_path):
    shutil.copy(NOTEBOOK, tmp_path)
    with pytest.raises(nbclient.exceptions.CellExecutionError, match="Set REPOSITORY to an address that git can clone"):
        run(nbformat.read(NOTEBOOK, as_version=4), tmp_path)


def test_the_notebook_is_kept_without_outputs():
    cells = [cell for cell in nbformat.read(NOTEBOOK, as_version=4).cells if cell.cell_type == "code"]
    assert all(not cell.outputs and cell.execution_count is None for cell in cells)
