"""Whether the contents of a checkpoint, which a stranger may have written, fit together."""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import Annotated, Any, Literal, get_type_hints

import torch
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, create_model

from maml_l2l.algorithms import MetaLearner, build_learner
from maml_l2l.backbones import factory_arguments, is_built_in
from maml_l2l.config import MAX_FILTERS, MAX_WAYS, Algorithm, Experiment, parse_experiment
from maml_l2l.config.problems import describe_problems, shown
from maml_l2l.data.splits import SPLITS, ClassSplit
from maml_l2l.system.errors import UserError

_MAX_CHANNELS, _MAX_SIDE = 64, 2**12
_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_STRICT = ConfigDict(extra="forbid", strict=True, arbitrary_types_allowed=True)


# What a backbone's arguments may be; the limits keep a file from asking for more memory than machines have.
_ARGUMENTS: dict[str, Any] = {
    "ways": (int, Field(ge=1, le=MAX_WAYS)),
    "channels": (int, Field(ge=1, le=_MAX_CHANNELS)),
    "image_size": (int, Field(ge=1, le=_MAX_SIDE)),
    "filters": (int, Field(ge=1, le=MAX_FILTERS)),
    "downsample": (Literal["stride", "max_pool"], ...),
}


class _Optimizer(BaseModel):
    """The state dict of an optimizer."""

    model_config = _STRICT
    # The limits keep a small pickle, which names one object a million times, from growing.
    state: Annotated[dict[int, Annotated[dict[str, torch.Tensor], Field(max_length=3)]], Field(max_length=10_000)]
    param_groups: Annotated[
        list[dict[str, bool | int | float | tuple[float, float] | list[int] | None]], Field(max_length=1)
    ]


def checked_contents(content: dict[str, Any], kind: type, origin: str, remedy: str) -> dict[str, Any]:
    """The fields of the dataclass `kind`, a checkpoint, built anew from `content`, so that nothing else comes along.

    Every field must have its type; numbers are finite and not negative; `config` is one of this version; the lists of
    `split` are disjoint; `backbone` is registered; `weights` has the names and shapes of that network and finite
    values, and so have `inner_lrs`, `transform`, `norms`, `averaged` and Adam's state in `optimizer`, where there are
    any. Raises
    `UserError`, which names `origin` and `remedy`, where one does not fit.
    """
    try:
        checked = _typed_fields(content, kind)
        _check_split(checked["split"])
        backbone = _checked_backbone(checked["backbone"], origin)
        experiment = parse_experiment(checked["config"], origin=f"the config in {origin}")
        _check_network(backbone, experiment)
        learner = _learner(experiment.algorithm, backbone)
        checked["weights"] = _finite_tensors(checked["weights"], learner.module.state_dict(), "weights")
        learned: dict[str, torch.Tensor] = {} if learner.inner_lrs is None else {"inner_lrs": learner.inner_lrs}
        given = {} if checked["inner_lrs"] is None else {"inner_lrs": checked["inner_lrs"]}
        checked["inner_lrs"] = _finite_tensors(given, learned, "checkpoint").get("inner_lrs")
        transform = {} if learner.transform is None else learner.transform.state_dict()
        checked["transform"] = _finite_tensors(checked["transform"] or {}, transform, "transform") or None
        norms = {} if learner.norms is None else learner.norms.named_rows()
        checked["norms"] = _finite_tensors(checked["norms"] or {}, norms, "norms") or None
        if checked["averaged"] is not None:
            checked["averaged"] = _finite_tensors(checked["averaged"], dict(learner.named_parameters()), "averaged")
        if checked["optimizer"] is not None:
            if experiment.train.ema is not None and checked["averaged"] is None:
                raise ValueError("`averaged` is missing, which a run with `train.ema` goes on from")
            checked["optimizer"] = _checked_adam(checked["optimizer"], list(learner.parameters()))
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"{origin} is not a valid checkpoint: {error}. {remedy}") from None
    return checked | {"backbone": backbone, "config": experiment.model_dump()}


def _checked_backbone(found: dict[str, Any], origin: str) -> dict[str, Any]:
    """The arguments of `build_backbone`. Those of `Conv4` were written without a name before there were others."""
    name = _typed(str, found.get("name", "conv4"), "backbone.name")
    try:
        asked = {argument: _ARGUMENTS[argument] for argument in factory_arguments(name)}
    except UserError as error:
        raise UserError(f"{origin}: {error}") from None
    kind = create_model("Backbone", __config__=_STRICT, **asked)
    arguments = {key: value for key, value in found.items() if key != "name"}
    return {"name": name, **_typed(kind, arguments, "backbone").model_dump()}


def _check_network(backbone: dict[str, Any], experiment: Experiment) -> None:
    """Two descriptions of one network must agree: what is printed and compared is the config's.

    The ways may differ, as the head of a network of many serves tasks of fewer, and so may the name that a user has
    registered a network of their own by.
    """
    data = {key: getattr(experiment.data, key) for key in ("channels", "image_size")}
    stated = {**experiment.model.model_dump(), **data}
    if not is_built_in(backbone["name"]):
        del stated["name"]
    for key, found in backbone.items():
        if key in stated and stated[key] != found:
            raise ValueError(
                f"`backbone.{key}` should be {shown(stated[key])}, as its config says, found {shown(found)}"
            )


def _learner(algorithm: Algorithm, backbone: dict[str, Any]) -> MetaLearner:
    """What the tensors must be like, without a draw from the random state.

    With a built-in network it takes no memory, as a file says its size. A user's own may compute with its weights.
    """
    with torch.random.fork_rng(devices=[]), torch.device("meta" if is_built_in(backbone["name"]) else "cpu"):
        return build_learner(algorithm, backbone)


def _typed(kind: Any, value: Any, name: str) -> Any:
    """`value`, its containers built anew. Raises `ValueError` where it does not have the type `kind`."""
    config = None if isinstance(kind, type) and issubclass(kind, BaseModel) else _STRICT
    try:
        return TypeAdapter(kind, config=config).validate_python(value)
    except ValidationError as error:
        problems = [problem | {"loc": (name, *problem["loc"])} for problem in error.errors()]
        known = [f"{name}.{field}" for field in getattr(kind, "model_fields", ())]
        raise ValueError(describe_problems(problems, known)) from None


def _typed_fields(content: dict[str, Any], kind: type) -> dict[str, Any]:
    fields = {field.name: field.default for field in dataclasses.fields(kind)}
    missing = [name for name, default in fields.items() if default is dataclasses.MISSING and name not in content]
    unknown = [name for name in content if name not in fields]
    if missing or unknown:
        raise ValueError(f"it lacks the fields {shown(missing)} and holds the unknown fields {shown(unknown)}")
    hints = get_type_hints(kind)
    checked = {name: _typed(hints[name], content.get(name, default), name) for name, default in fields.items()}
    for name, value in checked.items():
        if isinstance(value, (int, float)) and not 0 <= value < 2**63:
            raise ValueError(f"`{name}` should be a finite number that is not negative, found {shown(value)}")
    if not checked["temperature"]:
        raise ValueError("`temperature` should be more than 0, found 0")
    return checked


def _check_split(split: ClassSplit) -> None:
    if set(split) != set(SPLITS):
        raise ValueError(f"`split` should name the classes of {', '.join(SPLITS)}, found {shown(list(split))}")
    counts = Counter(name for part in split.values() for name in part)
    if repeated := [name for name, count in counts.items() if count > 1]:
        raise ValueError(f"`split` should name each class once, and names {shown(repeated[0])} more often")


def _finite_tensors(
    found: dict[str, torch.Tensor], like: dict[str, torch.Tensor], name: str
) -> dict[str, torch.Tensor]:
    """`found` without its gradients and hooks; names and shapes must be those of `like`.

    So must the type be where that is no floating-point number, as in a table of indices.
    """
    if found.keys() != like.keys():
        missing, unknown = sorted(like.keys() - found.keys()), sorted(found.keys() - like.keys())
        raise ValueError(f"`{name}` lacks {shown(missing)} and holds the unknown {shown(unknown)}")
    for key, tensor in found.items():
        if tensor.shape != like[key].shape:
            shapes = f"{tuple(like[key].shape)}, found {shown(tuple(tensor.shape))}"
            raise ValueError(f"`{name}.{key}` should have the shape {shapes}")
        if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():  # would be filled up below
            raise ValueError(f"`{name}.{key}` should have as many numbers as its shape says, found fewer")
        if not like[key].is_floating_point():
            if tensor.dtype != like[key].dtype:
                raise ValueError(f"`{name}.{key}` should be of type {like[key].dtype}, found {tensor.dtype}")
        elif tensor.dtype not in _DTYPES or not tensor.isfinite().all():
            raise ValueError(f"`{name}.{key}` should hold finite floating-point numbers")
    return {key: tensor.detach().contiguous() for key, tensor in found.items()}


def _checked_adam(optimizer: dict[str, Any], parameters: list[torch.Tensor]) -> dict[str, Any]:
    """The state dict `optimizer`, which must be one of training's Adam for `parameters`."""
    found = _typed(_Optimizer, optimizer, "optimizer")
    (usual,) = torch.optim.Adam(parameters).state_dict()["param_groups"]
    groups = [{**usual, **group, "lr": usual["lr"]} for group in found.param_groups]
    if groups != [usual]:
        raise ValueError("`optimizer.param_groups` should be one group with the settings and parameters of training")
    (lr,) = (group.get("lr") for group in found.param_groups)
    if not isinstance(lr, float) or not 0 <= lr < float("inf"):
        raise ValueError(f"`optimizer.param_groups.lr` should be a finite number that is not negative, found {lr}")
    return {
        "state": {index: _checked_adam_state(index, state, parameters) for index, state in found.state.items()},
        "param_groups": found.param_groups,
    }


def _checked_adam_state(index: int, state: dict[str, torch.Tensor], parameters: list[torch.Tensor]) -> dict[str, Any]:
    name = f"optimizer.state.{index}"
    if index not in range(len(parameters)):
        raise ValueError(f"`{name}` is of none of the {len(parameters)} parameters")
    like = {"step": torch.empty(()), "exp_avg": parameters[index], "exp_avg_sq": parameters[index]}
    checked = _finite_tensors(state, like, name)
    if checked["step"] < 0:
        raise ValueError(f"`{name}.step` should not be negative, found {checked['step'].item()}")
    return checked
