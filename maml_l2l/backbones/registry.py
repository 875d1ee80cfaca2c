"""Backbones by name: who may make which network, and with what."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn

from maml_l2l.backbones.conv4 import Conv4
from maml_l2l.backbones.library import LibraryNetwork
from maml_l2l.backbones.mlp import MLP
from maml_l2l.backbones.resnet12 import ResNet12
from maml_l2l.config import BACKBONES, Model
from maml_l2l.config.problems import shortened, shown
from maml_l2l.system.errors import UserError, listing
from maml_l2l.system.image_models import LIBRARIES, input_format, is_library_name

Factory = Callable[..., nn.Module]

_factories: dict[str, Factory] = dict(zip(BACKBONES, (Conv4, ResNet12, MLP), strict=True))
_ARGUMENTS = ("ways", "channels", "image_size", "filters", "downsample")  # what a factory may ask for


def register_backbone(name: str, factory: Factory) -> None:
    """Make networks of `factory` available to configs as `model.name: NAME`, and to checkpoints that name it.

    factory: called as `factory(ways=5, channels=1, ...)` with those of these arguments that it names: `ways` (outputs
    of the head; needed), `channels`, `image_size` (pixels), `filters` and `downsample` (`model.filters` and
    `model.downsample` of the config). It returns a fresh network that turns images (N, C, H, W) in [0, 1] into logits
    (N, ways). The network keeps no running statistics; see `docs/library.md`. A second registration of a name takes
    the place of the first.

    Raises `UserError` where `factory` needs other arguments, and where `name` is that of a built-in backbone, or one
    that means a network of timm or torchvision.

    >>> import torch, maml_l2l
    >>> def linear(ways, channels, image_size):
    ...     return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(channels * image_size**2, ways))
    >>> maml_l2l.register_backbone("linear", linear)
    >>> maml_l2l.load_experiment(None, ["model.name=linear"]).model.name
    'linear'
    """
    if name in BACKBONES:
        raise UserError(f"the backbone {name} is built in, and published checkpoints need it. Take another name.")
    if is_library_name(name):
        raise UserError(f"the name {name} means a network of {listing(LIBRARIES)}. Take another name.")
    factory_arguments(name, factory)
    _factories[name] = factory


def use_backbone(name: str) -> None:
    """Make the backbone `name` available, which the user has given: import `package.module:factory` if it is one.

    Networks of timm and torchvision are available as they are.

    A name that a checkpoint gives must not come here. Raises `UserError` where there is no such backbone.
    """
    if is_library_name(name):
        input_format(name)  # raises where there is no such network
        return
    if name in _factories:
        return
    module, colon, attribute = name.partition(":")
    if not colon:
        raise UserError(
            f"model.name: there is no backbone {name}. {_known()}, or name your own as package.module:factory."
        )
    try:
        factory: Any = importlib.import_module(module)
        for part in attribute.split("."):
            factory = getattr(factory, part)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise  # the module is there, and lacks another one
        raise UserError(
            f"model.name: found no module {error.name} for {name}. Start the command in the folder that holds it, or "
            "install its package."
        ) from None
    except AttributeError:
        raise UserError(f"model.name: the module {module} has no {attribute}. Name a function that it has.") from None
    register_backbone(name, factory)


def build_backbone(arguments: dict[str, Any]) -> nn.Module:
    """A freshly initialised network of the backbone `arguments["name"]`, made with the other arguments.

    Raises `UserError` where the name is not registered and where its factory makes no network. Nothing is imported.
    """
    name = arguments["name"]
    network = _factory(name)(**{key: value for key, value in arguments.items() if key != "name"})
    if not isinstance(network, nn.Module):
        found = type(network).__name__
        raise UserError(
            f"the backbone {name} made an object of type {found}. Its factory must return a torch.nn.Module."
        )
    return network


def backbone_arguments(model: Model, ways: int, channels: int, image_size: int) -> dict[str, Any]:
    """What `build_backbone` takes for the `model` section: the name, and the arguments that its factory asks for."""
    given: dict[str, Any] = {"ways": ways, "channels": channels, "image_size": image_size}
    given |= {"filters": model.filters, "downsample": model.downsample}
    return {"name": model.name, **{key: given[key] for key in factory_arguments(model.name)}}


def factory_arguments(name: str, factory: Factory | None = None) -> list[str]:
    """The keyword arguments that `factory` (None: that of the registered `name`) asks for, `ways` among them."""
    factory = _factory(name) if factory is None else factory
    try:
        parameters = inspect.signature(factory).parameters.values()
    except (TypeError, ValueError):
        raise UserError(f"the backbone {name}: found {shown(factory)}, expected a function or a class.") from None
    names = {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        names.update(_ARGUMENTS)
    needed = {p.name for p in parameters if p.default is p.empty and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)}
    if unknown := sorted(needed.difference(_ARGUMENTS)):
        raise UserError(
            f"the backbone {name}: its factory needs {listing(unknown)}, which nothing gives. It may ask for "
            f"{listing(_ARGUMENTS)}; give its other arguments defaults."
        )
    if "ways" not in names:
        raise UserError(f"the backbone {name}: its factory takes no `ways`, the number of classes. Add the argument.")
    return [argument for argument in _ARGUMENTS if argument in names]


def is_built_in(name: str) -> bool:
    """Whether this package knows the network, so that a stranger's file may name it: no code of others is loaded."""
    return name in BACKBONES or is_library_name(name)


def _factory(name: str) -> Factory:
    if is_library_name(name):
        return partial(LibraryNetwork, name)
    if name not in _factories:
        raise UserError(
            f"the backbone {shown(name)} is not registered, and a checkpoint never makes code load. {_known()}. "
            "If it is your own, or you trust it, register it with maml_l2l.register_backbone, or name it yourself: "
            f"--set model.name={shortened(name) if ':' in name else 'package.module:factory'}."
        )
    return _factories[name]


def _known() -> str:
    return f"There are {listing(sorted(_factories))}, timm:NAME and torchvision:NAME"
