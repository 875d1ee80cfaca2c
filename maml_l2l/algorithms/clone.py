"""The copy of a network that one task adapts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from maml_l2l.system.learn2learn_import import MAML, clone_module, update_module

if TYPE_CHECKING:
    from maml_l2l.algorithms.meta_learner import MetaLearner


class TaskClone(MAML):
    """learn2learn's clone of a `MAML`, whose `adapt(loss)` steps as its learner has learned to."""

    def __init__(self, module: nn.Module, learner: MetaLearner, **options: bool):
        super().__init__(module, learner.lr, **options)
        self.module: nn.Module
        self._learner, self._steps = [learner], 0  # in a list, so that it is no part of this module
        self._take_norms()

    def clone(
        self, first_order: bool | None = None, allow_unused: bool | None = None, allow_nograd: bool | None = None
    ) -> TaskClone:
        """A copy of this copy, at its inner step; see learn2learn's `MAML.clone`."""
        asked = {"first_order": first_order, "allow_unused": allow_unused, "allow_nograd": allow_nograd}
        options = {name: getattr(self, name) if value is None else value for name, value in asked.items()}
        copy = TaskClone(clone_module(self.module), self._learner[0], **options)
        copy._steps = self._steps
        copy._take_norms()
        return copy

    def adapt(
        self,
        loss: torch.Tensor,
        first_order: bool | None = None,
        allow_unused: bool | None = None,
        allow_nograd: bool | None = None,
    ) -> None:
        """Take the next step along the gradient of `loss`; see learn2learn's `MAML.adapt`."""
        (learner,) = self._learner
        second_order = not (self.first_order if first_order is None else first_order)
        parameters = dict(self.module.named_parameters())
        moving = {name: parameters[name] for name in learner.adapted_names()}
        if not (self.allow_unused if allow_unused is None else allow_unused):
            torch.autograd.grad(loss, list(moving.values()), retain_graph=True)  # raises where one is not used
        gradients = torch.autograd.grad(
            loss, list(moving.values()), create_graph=second_order, allow_unused=True, materialize_grads=True
        )
        directions = dict(zip(moving, gradients, strict=True))
        if learner.transform is not None:
            directions = learner.transform(directions)
        rates = dict(zip(parameters, learner.rates(self._steps).unbind(), strict=True))
        for name, direction in directions.items():
            vars(parameters[name])["update"] = -rates[name] * direction  # where `update_module` looks for it
        self.module = update_module(self.module)
        self._steps += 1
        self._take_norms()

    def _take_norms(self) -> None:
        for name, value in self._learner[0].norms_at(self._steps).items():
            layer, _, own = name.rpartition(".")
            parameters: dict[str, Any] = self.module.get_submodule(layer)._parameters
            parameters[own] = value  # a tensor that leads back to the learner's
