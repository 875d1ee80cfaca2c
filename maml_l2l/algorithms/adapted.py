"""Networks that have adapted to the support sets of some tasks, for any queries."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from maml_l2l.algorithms.checks import check_normalisation
from maml_l2l.algorithms.features import features_of
from maml_l2l.algorithms.functional import plain_attention

if TYPE_CHECKING:
    from maml_l2l.algorithms.meta_learner import MetaLearner


@dataclass(frozen=True)
class AdaptedNetworks:
    """What `MetaLearner.adapt_once` returns."""

    learner: MetaLearner
    support: torch.Tensor
    ways: int | None
    networks: list[Any]
    network: nn.Module | None = None
    """Whose features the learner takes in place of images; see `head_learner`."""

    @plain_attention()
    def answer(self, query: torch.Tensor, normalisation: str) -> torch.Tensor:
        """query: (T, n, ...) -> outputs (numbers of steps, T, n, ways).  normalisation: see `adapt_and_score`."""
        check_normalisation(normalisation)
        query = query if self.network is None else features_of(self.network, query)
        parts = [self.learner._answers(n, self.support, query, self.ways, normalisation) for n in self.networks]
        return torch.stack(parts)
