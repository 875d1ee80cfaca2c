"""What engines refuse before they work."""

from __future__ import annotations

from torch import nn

from maml_l2l.system.errors import UserError


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
