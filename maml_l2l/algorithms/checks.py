"""What engines refuse before they work."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fnmatch import filter as matching
from typing import Any

import torch
from torch import nn

from maml_l2l.system.errors import UserError, listing

GRADIENTS = ("second", "implicit", "reptile", "finite_difference")
# What `torch.func` says of a network that it cannot take.
_UNSUITED = ("atching rule", "vmap", "torch.func", "functorch", "forward AD")


def check_normalisation(normalisation: str) -> None:
    """Raise `UserError` where `normalisation` is neither `batch` nor `support`."""
    if normalisation not in ("batch", "support"):
        raise UserError(f"normalisation should be 'batch' or 'support', found {normalisation!r}.")


def check_module(module: nn.Module, allow_nograd: bool) -> None:
    """Raise `UserError` where `module` is none that tasks can share, or has frozen parameters that may not be.

    Running statistics that change in training are refused; those of a part that stays in evaluation mode, whatever
    `train()` says, are constants.
    """
    for name, part in _in_training(module):
        if getattr(part, "running_mean", None) is not None:
            raise UserError(
                f"the module keeps running statistics ({name or type(part).__name__}), which tasks would share. Call "
                "torch.func.replace_all_batch_norm_modules_(module) first, build it with track_running_stats=False, "
                "or keep that part in evaluation mode, whatever train() says, so that they are constants."
            )
    frozen = [name for name, parameter in module.named_parameters() if not parameter.requires_grad]
    if frozen and not allow_nograd:
        raise UserError(f"the parameter {frozen[0]} requires no gradient, which allow_nograd=False rules out.")


def _in_training(module: nn.Module) -> list[tuple[str, nn.Module]]:
    """The parts of `module` that `module.train()` puts into training mode; it is left in the mode that it has."""
    modes = {part: part.training for part in module.modules()}
    module.train()
    found = [(name, part) for name, part in module.named_modules() if part.training]
    for part, mode in modes.items():
        part.training = mode
    return found


def check_setting(learner: Any, name: str, value: Any) -> None:
    """Raise `UserError` where `value` is none that the attribute `name` of `learner` can have."""
    if name == "gradient":
        if not hasattr(type(learner), "gradient"):
            raise UserError("LoopMAML has the exact gradient, and with first_order=True that. Use VectorizedMAML.")
        if value not in GRADIENTS:
            remedy = " First order is first_order=True." if value == "first" else ""
            raise UserError(f"gradient: expected one of {listing(GRADIENTS)}, found {value!r}.{remedy}")
    elif name == "adapted":
        _check_patterns(value, learner.module)
    elif name == "task_chunk" and value is not None:
        check_positive(name, value)
    elif name == "prototype_head" and value and not has_linear_head(learner.module):
        raise UserError(
            "prototype_head is for networks that end in a linear layer `head` with a bias, and this one "
            f"({type(learner.module).__name__}) has none. Give its last layer that name."
        )


def check_positive(name: str, value: int) -> None:
    """Raise `UserError` where `value` is less than 1."""
    if value < 1:
        raise UserError(f"{name}: expected 1 or more, found {value}.")


def check_cloneable(learner: Any) -> None:
    """Raise `UserError` where `learner` adapts in a way that a clone of it cannot."""
    if learner.prototype_head or getattr(learner, "gradient", None) == "implicit":
        raise UserError(
            "clone() has neither a head of prototypes nor the pull of the implicit gradient. Call meta_gradient, "
            "adapt_and_score or adapt_once in its place."
        )


def check_scalars(losses: torch.Tensor) -> None:
    """Raise `UserError` where a loss gave more than one number for each task."""
    if losses.ndim != 1:
        raise UserError(
            "loss: expected a scalar of the outputs and targets of one task, found the shape "
            f"{tuple(losses.shape[1:])}. Take the mean, as reduction='mean' does."
        )


def _check_patterns(patterns: Sequence[str], module: nn.Module) -> None:
    names = [name for name, _ in module.named_parameters()]
    if isinstance(patterns, str):
        raise UserError(f"adapted: expected a list of patterns, such as ['head.*'], found {patterns!r}.")
    for pattern in patterns:
        if not matching(names, pattern):
            raise UserError(f"adapted: no parameter is called {pattern!r}. There are: {listing(names)}.")


def has_linear_head(network: nn.Module) -> bool:
    """Whether a linear layer `head` with a bias is in `network`."""
    head = getattr(network, "head", None)
    return isinstance(head, nn.Linear) and head.bias is not None


def check_steps(learner: Any, steps: int) -> None:
    """Raise `UserError` where `learner` cannot take `steps` inner steps."""
    if steps < 0:
        raise UserError(f"inner_steps: expected a number from 0, found {steps}.")
    if steps and not learner.adapted_names():
        raise UserError(
            "the inner loop would adapt nothing: all that `adapted` names is frozen, or has scales and shifts per step."
        )


def check_each_step(learner: Any, steps: Sequence[int]) -> None:
    """Raise `UserError` where `steps` are no rising numbers of inner steps, or `learner` cannot take so many."""
    if not len(steps) or list(steps) != sorted(set(steps)) or steps[0] < 0:
        raise UserError(f"steps should be numbers from 0, each greater than the one before, found {list(steps)}.")
    check_steps(learner, steps[-1])


def check_unlearned(learner: Any) -> None:
    """Raise `UserError` where `learner` is to learn what its meta-gradient has nothing to say of."""
    names = ("inner_lrs", "transform", "norms", "step_weights")
    if learner.gradient in ("implicit", "reptile") and not learner.first_order:
        found = [name for name in names if getattr(learner, name) is not None]
        if found:
            raise UserError(f"gradient: {learner.gradient!r} has no use for {listing(found)}. Leave them out.")


def first_outputs(outputs: torch.Tensor, ways: int | None) -> torch.Tensor:
    """The outputs (..., ways) of a network for `ways` classes, all for None. Raises `UserError` where it has fewer."""
    if ways is None:
        return outputs
    if outputs.shape[-1] < ways:
        raise UserError(f"the network has {outputs.shape[-1]} outputs, too few for tasks of {ways} ways.")
    return outputs[..., :ways]


@contextmanager
def unsuited_networks_explained() -> Iterator[None]:
    """Within it, what `torch.func` raises of a network that it cannot take is a `UserError`."""
    try:
        yield
    except RuntimeError as error:
        first = (str(error).splitlines() or [""])[0]
        if not any(phrase in first for phrase in _UNSUITED):
            raise
        raise UserError(
            "VectorizedMAML cannot adapt many copies of this network at once; LoopMAML can (algorithm.engine: loop). "
            f"PyTorch says: {first}"
        ) from error
