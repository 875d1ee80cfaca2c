"""The sample drawings, with which the page opens: in a checkout or in an installed wheel."""

from __future__ import annotations

from pathlib import Path

# `examples/drawings/` of the checkout, which a wheel carries inside the package; setup.py puts it there.
_FOLDERS = (Path(__file__).parents[1] / "sample_drawings", Path(__file__).parents[2] / "examples" / "drawings")


def sample_files() -> tuple[list[Path], list[Path]]:
    """Support pictures, each in the folder of its class, and queries; none where the installation came without them."""
    folder = next((folder for folder in _FOLDERS if (folder / "support").is_dir()), None)
    if folder is None:
        return [], []
    return sorted(folder.glob("support/*/*.png")), sorted(folder.glob("queries/*.png"))
