"""Networks that have adapted to the support sets of some tasks, for any queries."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from maml_l2l.algorithms.functional import plain_attention
from maml_l2l.system.errors import UserError

if TYPE_CHECKING:
    from maml_l2l.algorithms.meta_learner import MetaLearner


@dataclass(frozen=True)
class AdaptedNetworks:
    """What `MetaLearner.adapt_once` returns."""

    learner: MetaLearner
    support: torch.Tensor
    ways: int | None
    networks: list[Any]

    @plain_attention()
    def answer(self, query: torch.Tensor, normalisation: str) -> torch.Tensor:
        """query: (T, n, ...) -> outputs (numbers of steps, T, n, ways).  normalisation: see `adapt_and_score`."""
        check_normalisation(normalisation)
        parts = [self.learner._answers(n, self.support, query, self.ways, normalisation) for n in self.networks]
        return torch.stack(parts)


def check_normalisation(normalisation: str) -> None:
    """Raise `UserError` where `normalisation` is neither `batch` nor `support`."""
    if normalisation not in ("batch", "support"):
        raise UserError(f"normalisation should be 'batch' or 'support', found {normalisation!r}.")
