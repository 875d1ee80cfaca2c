"""The one place that imports timm and torchvision, late: their networks by name, and their weights.

A name is `timm:NAME` or `torchvision:NAME` with a NAME that the library lists, so a name from a stranger's file makes
nothing load but the library, and nothing is downloaded but by `downloaded_weights`.
"""

from __future__ import annotations

import contextlib
import difflib
import functools
import logging
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from maml_l2l.system.errors import MissingPackage, UserError, listing

if TYPE_CHECKING:
    import torch
    from torch import nn

LIBRARIES = ("timm", "torchvision")

_log = logging.getLogger(__name__)


class InputFormat(NamedTuple):
    """What a network was trained to see: squares of `side` pixels, each colour from 0 to 1 less `mean`, over `std`."""

    side: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


def is_library_name(name: str) -> bool:
    """Whether `name` is one of timm's or torchvision's networks, as it is written, whether there is such a one or not.

    >>> is_library_name("timm:resnet18"), is_library_name("torchvision.models:resnet18")
    (True, False)
    """
    return name.partition(":")[0] in LIBRARIES and ":" in name


def input_format(name: str) -> InputFormat:
    """What the network `name` takes, as its library says. Raises `UserError` where there is no such network."""
    library, known = _checked(name)
    if library == "timm":
        from timm.data import resolve_data_config
        from timm.models import get_pretrained_cfg

        config = get_pretrained_cfg(known)
        found = resolve_data_config(pretrained_cfg=config.to_dict() if config is not None else {})
        return InputFormat(found["input_size"][-1], tuple(found["mean"]), tuple(found["std"]))
    transforms = _torchvision_weights(known).transforms()
    return InputFormat(transforms.crop_size[0], tuple(transforms.mean), tuple(transforms.std))


def create_body(name: str) -> nn.Module:
    """The network `name` with random weights and without its classifier: images (N, 3, H, W) -> features (N, width).

    Raises `UserError` where there is no such network, and where it does not end in a linear classifier.
    """
    library, known = _checked(name)
    if library == "timm":
        from timm import create_model

        return create_model(known, pretrained=False, num_classes=0)
    import torch

    try:
        return _torchvision_body(known)
    except NotImplementedError:  # on the device `meta`, for those that compute with tensors while they are made
        with torch.device("cpu"):
            return _torchvision_body(known)


def downloaded_weights(name: str) -> dict[str, torch.Tensor]:
    """The state dict of the network `name` as its library publishes it, downloaded to the library's cache.

    The library checks the sums of what it downloads. Raises `UserError`, with the ways out, where that fails.
    """
    library, known = _checked(name)
    _log.info(f"taking the weights of {name} from the cache of {library}, or downloading them")
    try:
        if library == "timm":
            from timm import create_model

            with _quiet("huggingface_hub"):
                return create_model(known, pretrained=True, num_classes=0).state_dict()
        return _torchvision_weights(known).get_state_dict(progress=False, check_hash=True)
    except Exception as error:  # of the network, of the hub, of what it sent: each library has its own
        raise UserError(_no_weights(name, library, error)) from None


@contextlib.contextmanager
def _quiet(logger: str) -> Iterator[None]:
    """Without the warnings of a library that tries again and again."""
    log = logging.getLogger(logger)
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)


def _no_weights(name: str, library: str, error: Exception) -> str:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0].split(". ")[0].rstrip(".")
    mirror = (
        "HF_ENDPOINT names a mirror of the hub, or HF_HOME the cache of a machine that has them"
        if library == "timm"
        else "TORCH_HOME names the cache of a machine that has them"
    )
    return (
        f"the weights of {name} cannot be downloaded: {reason}. Give a file of them (--set model.weights=FILE; in "
        f'Python load_pretrained("{name}", weights=FILE)), or set the environment: {mirror}.'
    )


def _checked(name: str) -> tuple[str, str]:
    """(library, its own name of the network). Raises `UserError` where the library is not installed, or lists none."""
    library, _, known = name.partition(":")
    architecture, _, tag = known.partition(".")
    names, tags = _listed(library)
    if architecture not in names or (library == "torchvision" and tag):
        near = difflib.get_close_matches(known, names, n=3)
        like = f"It has {listing(near)}" if near else f"Its list is {library}'s list_models()"
        raise UserError(f"model.name: {library} has no network {known}. {like}.")
    if tag and known not in tags:
        has = sorted(one.partition(".")[2] for one in tags if one.partition(".")[0] == architecture)
        raise UserError(
            f"model.name: timm has no weights {tag} for {architecture}. It has {listing(has) or 'none'}; without a "
            "tag they are its default ones."
        )
    return library, known


@functools.cache
def _listed(library: str) -> tuple[set[str], set[str]]:
    """The names of the networks, and those with the tags of their weights."""
    try:
        if library == "timm":
            import timm

            return set(timm.list_models()), set(timm.list_pretrained())
        from torchvision import models

        return set(models.list_models(module=models)), set()
    except ModuleNotFoundError as error:
        if error.name not in LIBRARIES:
            raise
        raise MissingPackage(
            f"model.name: {library} is not installed, which has this network: pip install {library}, or both "
            "libraries by pip install -e '.[photos]'."
        ) from None


def _torchvision_weights(known: str) -> Any:
    from torchvision.models import get_model_weights

    return get_model_weights(known).DEFAULT


def _torchvision_body(known: str) -> nn.Module:
    from torch import nn
    from torchvision.models import get_model

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of initial weights, which are not kept
        network = get_model(known, weights=None)
    layers = [path for path, layer in network.named_modules() if isinstance(layer, nn.Linear)]
    if not layers:
        raise UserError(f"model.name: torchvision's {known} has no linear classifier to replace. Take another network.")
    parent, _, last = layers[-1].rpartition(".")
    setattr(network.get_submodule(parent), last, nn.Identity())
    return network
