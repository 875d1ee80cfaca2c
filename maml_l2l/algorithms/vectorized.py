"""The fast engine: all tasks of a chunk adapt at once, each with its own copy of the weights."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.func import grad

from maml_l2l.algorithms.adjoint import Parameters
from maml_l2l.algorithms.checks import check_unlearned, unsuited_networks_explained
from maml_l2l.algorithms.chunk_gradient import ChunkGradient
from maml_l2l.algorithms.compiling import CompiledPieces
from maml_l2l.algorithms.functional import other_names
from maml_l2l.algorithms.scores import Loss, Scores
from maml_l2l.algorithms.task_networks import TaskNetworks
from maml_l2l.backbones import first_images_normalise
from maml_l2l.system.errors import UserError
from maml_l2l.tasks.batch import TaskBatch

# Support images of a chunk on a CPU, the best of 25 to 160 at 5 and 20 ways: compiled code gains from the cache, the
# other from fewer and larger operations. A GPU wants all there is; this bounds its memory.
_IMAGES_COMPILED, _IMAGES_UNCOMPILED, _IMAGES_GPU = 50, 100, 800
_USUAL_NUMBERS = 3 * 84 * 84  # of one image; larger ones count for as many as their activations take memory


class VectorizedMAML(TaskNetworks):
    """MAML over batches of tasks, with the gradients of `LoopMAML` and without its loop over tasks.

    Works for any module without state that changes in `forward`, through `torch.func`; `adjoint` has the equations of
    the meta-gradient. A module may offer a formulation that batches well, as the methods `task_parameters` (a
    rearrangement of its parameters) and `forward_tasks`; see `Conv4`.

    >>> import maml_l2l, torch
    >>> learner = maml_l2l.VectorizedMAML(torch.nn.Linear(3, 2), lr=0.4)
    >>> images, labels = torch.rand(8, 2, 3), torch.arange(2).expand(8, 2)  # 8 tasks, 2 ways
    >>> scores = learner.meta_gradient(maml_l2l.TaskBatch(images, labels, images, labels), inner_steps=1)
    >>> scores.losses.shape, learner.module.weight.grad.shape
    (torch.Size([8]), torch.Size([2, 3]))
    """

    recompute = False
    """Keep every sqrt(K)-th of the K inner steps' weights only: less memory, one more gradient per step."""

    cg_steps = 5
    """Steps of conjugate gradients that solve for the implicit gradient."""

    compiled = False
    """Compile the pieces of the meta-gradient for the first chunk's shapes; whatever has others runs as it is."""

    def __init__(
        self,
        model: torch.nn.Module,
        lr: float,
        first_order: bool = False,
        allow_unused: bool | None = None,
        allow_nograd: bool = True,
        loss: Loss | None = None,
    ):
        """See `MetaLearner`. Raises `UserError` for `allow_unused=False`, too: unused parameters are not looked for."""
        super().__init__(model, lr, first_order, allow_unused, allow_nograd, loss)
        if not self.allow_unused:
            raise UserError("VectorizedMAML does not look for unused parameters: leave allow_unused=False to LoopMAML.")
        self._pieces = CompiledPieces()
        self._look_up()

    @property
    def _pulled(self) -> bool:
        """Whether the inner loop is pulled to where it starts."""
        return self.gradient == "implicit" and not self.first_order

    def _look_up(self) -> None:
        self._moving, self._others = set(self.adapted_names()), other_names(self.module)

    def _adapt(
        self, support: torch.Tensor, labels: torch.Tensor, ways: int | None, steps: Sequence[int]
    ) -> Iterator[tuple[Parameters, Parameters]]:
        differentiable = torch.is_grad_enabled()
        self._look_up()
        task = support.contiguous(), labels.contiguous(), ways
        theta, eta = self.run("begin", self._shared(), *task)
        anchor = theta if self._pulled else None
        for step in range(steps[-1] + 1):
            if step in steps:
                yield theta, self._eta(eta, step)
            if step < steps[-1]:
                arguments = theta, self._eta(eta, step), self._phi(step), anchor, *task
                theta = self._differentiable_step(*arguments) if differentiable else self.run("step", *arguments)[0]
        self._pieces.announce()

    def _answers(
        self,
        networks: tuple[Parameters, Parameters],
        support: torch.Tensor,
        query: torch.Tensor,
        ways: int | None,
        normalisation: str,
    ) -> torch.Tensor:
        return self.run("outputs", *networks, support.contiguous(), query.contiguous(), ways, normalisation)

    def _differentiable_step(
        self, theta: Parameters, eta: Parameters, phi: Parameters, anchor: Parameters | None, *support: Any
    ) -> Parameters:
        """For `autograd` to differentiate, as a loss of the caller's own on the outputs may want."""
        with unsuited_networks_explained(), torch.set_grad_enabled(not self.first_order):
            gradients = grad(self._problem(anchor, *support).support_loss)(theta, eta)
        return self._update(theta, gradients, phi)

    @torch.no_grad()
    def _chunk_gradient(
        self, tasks: TaskBatch, inner_steps: int, normalisation: str
    ) -> tuple[Sequence[torch.Tensor], Scores]:
        check_unlearned(self)
        self._look_up()
        chunk = ChunkGradient(self, tasks, inner_steps, normalisation)
        chunk.run()
        self._pieces.announce()
        learned = [name for name, parameter in self.named_parameters() if parameter.requires_grad]
        return [chunk.totals[name] for name in learned], chunk.scores

    def run(self, piece: str, *arguments: Any) -> Any:
        """Call `_{piece}` of `TaskNetworks`, compiled where that is wanted and can be had."""
        function = getattr(self, f"_{piece}")
        trivial = piece == "begin" and not self.prototype_head
        first = total = None
        if arguments[-1] == "support" and not self._batches_itself:
            support, query = arguments[2], arguments[3 if piece == "outputs" else -3]
            first, total = support.shape[1], support.shape[1] + query.shape[1]
        with (
            unsuited_networks_explained(),
            first_images_normalise(self.module, first, total),
        ):
            if not self.compiled or trivial or torch.is_grad_enabled():
                return function(*arguments)
            name = f"{piece} (first order)" if piece in ("turn", "step_back") and self.first_order else piece
            return self._pieces.run(name, function, arguments)

    def _default_chunk(self, tasks: TaskBatch) -> int:
        """So many tasks that their activations stay near the cache, and if possible a divisor of their number."""
        images = _IMAGES_COMPILED if self.compiled else _IMAGES_UNCOMPILED
        if tasks.support.is_cuda:
            images = _IMAGES_GPU
        images = images * _USUAL_NUMBERS // max(_USUAL_NUMBERS, tasks.support[0, 0].numel())
        most = min(len(tasks), max(1, images // tasks.support.shape[1]))
        divisor = max(size for size in range(1, most + 1) if len(tasks) % size == 0)
        return divisor if 2 * divisor > most else most
