"""Networks of timm and torchvision, which have learned from photographs, as bodies below a linear head."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from maml_l2l.config.problems import shown
from maml_l2l.system.errors import MissingPackage, UserError, listing
from maml_l2l.system.files import open_regular, reason
from maml_l2l.system.image_models import create_body, downloaded_weights, input_format
from maml_l2l.system.torch_files import UnreadableFile, load_torch_file

_LENGTH = 2.5  # of the features, at first: the best probabilities of an ImageNet body that sees icons, 5 to 20 ways
_MAX_BYTES = 2**30


class LibraryNetwork(nn.Module):
    """A body of timm or torchvision without its classifier, features of one length, and a linear head.

    The body stays in evaluation mode whatever the mode of the network is: its batch norms use the statistics that they
    were trained with, as constants, and nothing is dropped. So images are looked at each alone. Its parameters learn,
    those of the norms among them.
    Features are scaled to the length `length`, which is learned. Then the Euclidean distances of a prototype head are
    those of cosines, whatever the size of the images, which raw features are not (their norms grow as images shrink);
    and `length` is the temperature of the probabilities.
    """

    features_of_each_alone = True
    """See `head_learner`."""

    def __init__(self, name: str, ways: int, image_size: int):
        """name: `timm:NAME` or `torchvision:NAME`.  ways: outputs of the head.  image_size: pixels.

        The weights are random. Raises `UserError` where there is no such network, or it takes no images of that size.
        """
        super().__init__()
        self.mean: torch.Tensor
        self.std: torch.Tensor
        self.name = name
        wanted = input_format(name)
        self.body = create_body(name).eval().to(memory_format=torch.channels_last)  # 1.5 times faster on CPUs
        self.register_buffer("mean", torch.tensor(wanted.mean).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(wanted.std).view(3, 1, 1))
        self.length = nn.Parameter(torch.tensor(_LENGTH))
        self.head = nn.Linear(_width(self.body, name, image_size, wanted.side), ways)

    def train(self, mode: bool = True) -> LibraryNetwork:
        """See `nn.Module.train`; the body stays in evaluation mode."""
        super().train(mode)
        self.body.eval()
        return self

    def features(self, x: torch.Tensor) -> torch.Tensor:
        """x: (N, 3, image_size, image_size) in [0, 1] -> (N, width), each of length `length`."""
        return self.length * F.normalize(self.body((x - self.mean) / self.std), dim=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: (N, 3, image_size, image_size) in [0, 1] -> logits (N, ways)."""
        logits: torch.Tensor = self.head(self.features(x))
        return logits

    def take_weights(self, source: str) -> None:
        """Give the body trained weights. source: `default`, those that the library downloads, or the path of a file.

        The file is one of `torch.save` or safetensors and holds a state dict with the library's names; a classifier
        that it holds is left out. Raises `UserError` where the weights cannot be had, and where they do not fit.
        """
        found = downloaded_weights(self.name) if source == "default" else _weights_in(Path(source))
        wanted = self.body.state_dict()
        if missing := [key for key in wanted if key not in found]:
            raise UserError(
                f"model.weights: {source} lacks {len(missing)} of the {len(wanted)} tensors of {self.name}: "
                f"{listing(missing, 3)}; found {listing(sorted(found), 3) or 'none'}. Give a file of this network."
            )
        for key, tensor in wanted.items():
            if found[key].shape != tensor.shape or not found[key].isfinite().all():
                raise UserError(
                    f"model.weights: {key} in {source} should be finite and have the shape {tuple(tensor.shape)}, "
                    f"found {tuple(found[key].shape)}. Give a file of {self.name}."
                )
        self.body.load_state_dict({key: found[key] for key in wanted})


def _width(body: nn.Module, name: str, image_size: int, usual: int) -> int:
    """How many features `body` gives for an image."""
    try:
        with torch.no_grad():
            features = body(torch.zeros(1, 3, image_size, image_size))
        problem = "" if features.ndim == 2 else f"it gives features of shape {tuple(features.shape[1:])}"
    except Exception as error:  # each network has its own words for a size that it does not take
        problem = (str(error).strip() or type(error).__name__).splitlines()[0]
    if problem:
        advice = "Take another network" if image_size == usual else f"Set data.image_size={usual}, which it is made for"
        raise UserError(f"model.name: {name} takes no images of {image_size} pixels: {problem.rstrip('.')}. {advice}.")
    return features.shape[1]


def _weights_in(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a state dict in a file, read without running code."""
    is_safe = path.suffix == ".safetensors"
    found: Any = _safetensors(path) if is_safe else _torch_file(path)
    for key in ("state_dict", "model"):  # as training scripts save it beside other things
        found = found.get(key, found) if isinstance(found, dict) else found
    if not isinstance(found, dict) or not all(isinstance(tensor, torch.Tensor) for tensor in found.values()):
        raise UserError(f"model.weights: {path} should hold a state dict, names and tensors, found {shown(found)}.")
    return found


def _torch_file(path: Path) -> Any:
    try:
        return load_torch_file(path, "file of weights", _MAX_BYTES)
    except UnreadableFile:
        raise
    except UserError as error:
        raise UserError(f"model.weights: {error} (Files of PyTorch before 1.6 are not read: save one anew.)") from None


def _safetensors(path: Path) -> dict[str, torch.Tensor]:
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load
    except ModuleNotFoundError:
        raise MissingPackage(f"model.weights: {path} needs safetensors: pip install safetensors.") from None
    try:
        with open_regular(path) as file:
            content = file.read(_MAX_BYTES + 1)
        if len(content) > _MAX_BYTES:
            raise UserError(f"model.weights: {path} is larger than {_MAX_BYTES} bytes. Take a smaller network.")
        return load(content)
    except OSError as error:
        raise UserError(f"model.weights: {path} cannot be read: {reason(error)}. Give another file.") from None
    except SafetensorError as error:
        raise UserError(f"model.weights: {path} is no file of safetensors ({error}). Give another one.") from None
