"""Where Omniglot lies, in torchvision's layout, and what looks like it."""

from __future__ import annotations

import os
from pathlib import Path

from maml_l2l.system.errors import UserError

PARTS = BACKGROUND, EVALUATION = "images_background", "images_evaluation"
_FOLDER = "omniglot-py"


def omniglot_folder(root: str | Path) -> Path:
    """The folder of Omniglot in `root`, or `root` itself where it is that folder."""
    inside = Path(root) / _FOLDER
    return Path(root) if Path(os.path.abspath(root)).name == _FOLDER and not inside.exists() else inside


def holds_omniglot(root: str | Path) -> bool:
    """Whether Omniglot, or what is left of it, lies in `root`."""
    return omniglot_folder(root).is_dir()


def check_no_part(root: str | Path) -> None:
    """Raise `UserError` where `root` holds the drawings of Omniglot, or is a half of them, but has not their name."""
    if Path(os.path.abspath(root)).name in PARTS or any((Path(root) / part).is_dir() for part in PARTS):
        raise UserError(
            f"{root} holds drawings of Omniglot. Put {BACKGROUND} and {EVALUATION} into a folder called {_FOLDER}, and "
            "name the folder around it. To take them as any other pictures: --set data.name=folder data.root=DIR."
        )
