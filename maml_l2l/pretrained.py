"""The pretrained networks by name, without PyTorch: where their files are, in a checkout or in an installed wheel."""

from __future__ import annotations

import json
import re
from pathlib import Path

from maml_l2l.system.errors import UserError
from maml_l2l.system.files import user_path
from maml_l2l.system.image_models import is_library_name

# `pretrained/` of the checkout, which a wheel carries inside the package; setup.py puts it there.
_FOLDERS = (Path(__file__).parent / "pretrained_networks", Path(__file__).parents[1] / "pretrained")
_NAMES = "names.json"

DEFAULT = "drawings"  # what names pictures where no network is given

# Networks that have no file here, by the library that downloads them: small, quick without a GPU, under Apache 2.0.
PHOTOS = "photos"
_BODIES = {PHOTOS: "timm:tf_efficientnet_lite0"}


def library_network(name_or_path: object) -> str | None:
    """`timm:NAME` or `torchvision:NAME`, for itself or for the name `photos`; None for what is a file or its name.

    >>> library_network("photos"), library_network("drawings")
    ('timm:tf_efficientnet_lite0', None)
    """
    if not isinstance(name_or_path, str) or Path(name_or_path).is_file():
        return None
    return _BODIES.get(name_or_path) or (name_or_path if is_library_name(name_or_path) else None)


def find_checkpoint(name_or_path: str | Path) -> Path:
    """The file of a checkpoint that is given by its path or by the name of a pretrained network.

    A word of letters, digits, `_` and `-` that no file in the working folder has is a name: that of a task such as
    `omniglot_5w1s`, which stands for the network that serves it best, or that of a file in `pretrained/` without its
    ending. Everything else is a path and comes back as it is, whether a file is there or not. For example,
    `find_checkpoint("omniglot_5w1s")`. Raises `UserError`, with the names that there are, where a name is none,
    and for `library_network`s, which have no file.
    """
    path = user_path(name_or_path)
    if network := library_network(name_or_path):
        raise UserError(
            f"{name_or_path} is no checkpoint file, which is asked for here: its weights are the library's. To start a "
            f"training from it, set model.name={network}."
        )
    if isinstance(name_or_path, Path) or not re.fullmatch(r"[\w-]+", name_or_path) or path.is_file():
        return path
    files = pretrained_files()
    if name_or_path not in files:
        raise UserError(
            f"there is no pretrained network {name_or_path}. Give the path of a .pth file, or one of these names: "
            f"{', '.join([*files, PHOTOS]) if files else 'none, as this installation came without them'}."
        )
    return files[name_or_path]


def files_of(name_or_path: str | Path) -> list[Path]:
    """What is read for a network: the file of `find_checkpoint`, and none of ours for one of timm or torchvision."""
    return [] if library_network(name_or_path) else [find_checkpoint(name_or_path)]


def pretrained_files() -> dict[str, Path]:
    """Each name of a pretrained network with its file; empty where the installation came without them."""
    folder = next((folder for folder in _FOLDERS if (folder / _NAMES).is_file()), None)
    if folder is None:
        return {}
    tasks = {name: folder / file for name, file in json.loads((folder / _NAMES).read_text()).items()}
    return tasks | {path.stem: path for path in sorted(folder.glob("*.pth"))}
