"""The section `model` of a config, and what a network of timm or torchvision makes of the other sections."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from maml_l2l.config.problems import checked_backbone_name
from maml_l2l.config.section import PathText, Section
from maml_l2l.system.errors import UserError
from maml_l2l.system.image_models import input_format, is_library_name

BackboneName = Annotated[str, AfterValidator(checked_backbone_name)]

BACKBONES = ("conv4", "resnet12", "mlp")  # the built-in ones
MAX_FILTERS = 1024  # so that no number in a file makes a network that no machine holds

# What is unset beside a network that has learned already: each task has a head of its own, and the rest learns slowly.
# Tasks then share all convolutions, of which the loop is the faster one.
_USUAL: dict[str, dict[str, Any]] = {
    "algorithm": {"head": "prototype", "adapt": "head", "inner_steps": 0, "engine": "loop"},
    "train": {"meta_lr": 1e-4},
}


class Model(Section):
    name: BackboneName = Field(
        "conv4",
        description="the backbone: `conv4`, `resnet12`, `mlp`, `timm:NAME` or `torchvision:NAME` (see docs/photos.md), "
        "or your own as `package.module:factory` (see docs/library.md)",
    )
    filters: int = Field(
        64,
        ge=1,
        le=MAX_FILTERS,
        description="conv4: filters of each convolution; resnet12: of the first block (the others: 2.5, 5, 10 times)",
    )
    downsample: Literal["stride", "max_pool"] = Field(
        "stride", description="conv4: halve the image in each block by a stride of 2, or by 2x2 max-pooling"
    )
    weights: Literal["default", "none"] | PathText | None = Field(
        None,
        description="timm, torchvision: what the body starts from: `default` (the library downloads it), a file, or "
        "`none` (random weights); unset: `default`",
    )
    pretrained: PathText | None = Field(
        None, description="checkpoint to start from (a new head where its `task.ways` is less); unset: random weights"
    )

    @model_validator(mode="before")
    @classmethod
    def _a_library_s_network_has_weights(cls, values: Any) -> Any:
        unset = isinstance(values, dict) and values.get("weights") is None and _library_name(values) is not None
        return values | {"weights": "default"} if unset else values

    @model_validator(mode="after")
    def _others_have_none(self) -> Model:
        if self.weights not in (None, "none") and not is_library_name(self.name):
            raise ValueError(
                f"`model.weights` is for networks of timm and torchvision, found {self.weights!r} for "
                f"`model.name: {self.name}`. To start from a checkpoint set `model.pretrained`"
            )
        return self


def with_library_defaults(values: dict[str, Any]) -> dict[str, Any]:
    """The sections `values` of a config, with what is unset as a network of timm or torchvision needs it.

    Raises `ValueError` where `model.name` is one that there is not, and its image size is asked for.
    """
    name = _library_name(values.get("model"))
    if name is None:
        return values
    usual = dict(_USUAL)
    data = values.get("data")
    if isinstance(data, dict) and data.get("name") == "folder" and data.get("image_size") is None:
        try:
            usual["data"] = {"image_size": input_format(name).side}
        except UserError as error:
            raise ValueError(str(error).rstrip(".")) from None
    for section, keys in usual.items():
        given = values.get(section, {})
        if isinstance(given, dict):
            given = keys | {key: value for key, value in given.items() if value is not None or key not in keys}
        values = values | {section: given}
    return values


def _library_name(model: Any) -> str | None:
    name = model.get("name") if isinstance(model, dict) else None
    return name if isinstance(name, str) and is_library_name(name) else None
