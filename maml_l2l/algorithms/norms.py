"""Scale and shift of each normalisation layer, meta-learned for every number of inner steps."""

from __future__ import annotations

import torch
from torch import nn

from maml_l2l.backbones import norm_parameter_names
from maml_l2l.system.errors import UserError


class NormsPerStep(nn.Module):
    """The scales and shifts of a network after 0, 1, ..., `steps` inner steps; more steps take the last ones again."""

    def __init__(self, network: nn.Module, steps: int):
        """All start as the network's own. Raises `UserError` where it has no normalisation layer that has some."""
        super().__init__()
        own = dict(network.named_parameters())
        self.names = norm_parameter_names(network)
        if not self.names:
            raise UserError("the network has no normalisation layer with scale and shift. Leave norm_per_step out.")
        copies = (own[name].detach().expand(steps + 1, *own[name].shape) for name in self.names)
        self.rows = nn.ParameterList(nn.Parameter(copy.clone()) for copy in copies)

    def at(self, step: int) -> dict[str, torch.Tensor]:
        """Those after `step` inner steps, by the names of the network's parameters."""
        return {name: rows[min(step, len(rows) - 1)] for name, rows in self.named_rows().items()}

    def named_rows(self) -> dict[str, torch.Tensor]:
        """(steps + 1, ...) each, by the names of the network's parameters."""
        return dict(zip(self.names, self.rows, strict=True))
