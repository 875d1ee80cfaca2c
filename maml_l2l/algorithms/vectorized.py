"""The fast engine: all tasks of a chunk adapt at once, each with its own copy of the weights."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterable, Sequence

import torch
from torch.func import functional_call, grad, vmap
from tqdm import tqdm

from maml_l2l.algorithms.meta_learner import MetaLearner
from maml_l2l.algorithms.scores import Scores, mean_cross_entropy, score
from maml_l2l.tasks.batch import TaskBatch

Parameters = dict[str, torch.Tensor]

# Support images of a chunk on a CPU, the best of 25 to 160 at 5 and 20 ways: compiled code gains from the cache, the
# other from fewer and larger operations. A GPU wants all there is; this bounds its memory.
_IMAGES_COMPILED, _IMAGES_UNCOMPILED, _IMAGES_GPU = 50, 100, 800

# Of the gradient's norm; bfloat16 products, which compiled code rounds elsewhere, make 0.14 of it.
_MOST_DIFFERENCE = 0.5


class VectorizedMAML(MetaLearner):
    """MAML over batches of tasks, with the gradients of `LoopMAML` and without its loop over tasks.

    Works for any module without state that changes in `forward` (batch statistics, not running ones), through
    `torch.func`. A module may offer a formulation that batches well, as the methods `task_parameters` and
    `forward_tasks`; see `Conv4`.
    """

    compile = False
    """Compile the meta-gradient for the first chunk's shapes and inner steps; whatever has others runs as it is."""

    _compiled: Callable | None = None
    _compiled_for: tuple = ()

    def adapt_and_score(self, tasks: TaskBatch, steps: Sequence[int], normalisation: str = "batch") -> torch.Tensor:
        """See `MetaLearner.adapt_and_score`."""
        return self._adapt_and_score(dict(self.named_parameters()), tasks, steps, normalisation)

    def _adapt_and_score(
        self, initial: Parameters, tasks: TaskBatch, steps: Sequence[int], normalisation: str
    ) -> torch.Tensor:
        """initial: the `named_parameters()` of this learner, its step sizes among them where they are learned."""
        differentiable = torch.is_grad_enabled()
        network = {name.removeprefix("module."): p for name, p in initial.items() if name.startswith("module.")}
        parameters = self._task_parameters(network, len(tasks))
        scored = []
        for step in range(steps[-1] + 1):
            if step in steps:
                scored.append(self._query_logits(parameters, tasks, normalisation))
            if step < steps[-1]:
                with torch.set_grad_enabled(differentiable and not self.first_order):
                    gradients = self._inner_gradients(parameters, tasks)
                lrs = self._inner_lrs(initial.get("inner_lrs"), network, step)
                # Finn et al. (2017), equation 1
                parameters = {name: p - lrs[name] * gradients[name] for name, p in parameters.items()}
        return torch.stack(scored)

    def _task_parameters(self, parameters: Parameters, tasks: int) -> Parameters:
        """The same initial weights for every task, (tasks, ...) each, in the layout that `_logits` takes."""
        if self._batches_itself:
            parameters = self.module.task_parameters(parameters)
        return {name: p.expand(tasks, *p.shape) for name, p in parameters.items()}

    @property
    def _batches_itself(self) -> bool:
        return hasattr(self.module, "forward_tasks")

    def _inner_lrs(self, learned: torch.Tensor | None, names: Iterable[str], step: int) -> dict:
        """The size of inner step `step` for each parameter tensor of the module, whose names are in order."""
        if learned is None:
            return dict.fromkeys(names, self.lr)
        return dict(zip(names, learned[min(step, len(learned) - 1)].unbind(), strict=True))

    def _inner_gradients(self, parameters: Parameters, tasks: TaskBatch) -> Parameters:
        """The gradient of every task's support loss for its own weights."""

        def loss(parameters: Parameters) -> torch.Tensor:
            # Tasks share no weights here, so the gradient of the sum of their losses is each task's own gradient.
            return mean_cross_entropy(self._logits(parameters, tasks.support, tasks.ways), tasks.support_labels).sum()

        return grad(loss)(parameters)

    def _query_logits(self, parameters: Parameters, tasks: TaskBatch, normalisation: str) -> torch.Tensor:
        if normalisation == "batch":
            return self._logits(parameters, tasks.query, tasks.ways)
        images, count = torch.cat([tasks.support, tasks.query], dim=1), tasks.support.shape[1]
        return self._logits(parameters, images, tasks.ways, count)[:, count:]

    def _logits(
        self, parameters: Parameters, images: torch.Tensor, ways: int, statistics_from: int | None = None
    ) -> torch.Tensor:
        options = {} if statistics_from is None else {"statistics_from": statistics_from}
        if self._batches_itself:
            return self.module.forward_tasks(parameters, images, **options)[..., :ways]

        def one_task(parameters: Parameters, images: torch.Tensor) -> torch.Tensor:
            return functional_call(self.module, parameters, (images,), options)

        return vmap(one_task, randomness="different")(parameters, images)[..., :ways]

    def _default_chunk(self, tasks: TaskBatch) -> int:
        """So many tasks that their activations stay near the cache, and if possible a divisor of their number."""
        images = _IMAGES_COMPILED if self.compile else _IMAGES_UNCOMPILED
        if tasks.support.is_cuda:
            images = _IMAGES_GPU
        most = min(len(tasks), max(1, images // tasks.support.shape[1]))
        divisor = max(size for size in range(1, most + 1) if len(tasks) % size == 0)
        return divisor if 2 * divisor > most else most

    def _chunk_gradient(
        self, tasks: TaskBatch, inner_steps: int, normalisation: str
    ) -> tuple[Sequence[torch.Tensor], Scores]:
        """See `MetaLearner._chunk_gradient`."""
        work = (tasks.support.shape, tasks.query.shape, inner_steps, normalisation)
        if self.compile and not self._compiled_for:
            self._compiled_for = work
            self._compile(tasks, inner_steps, normalisation)
        if self._compiled is None or work != self._compiled_for:
            return super()._chunk_gradient(tasks, inner_steps, normalisation)
        return self._run_compiled(tasks)

    def _run_compiled(self, tasks: TaskBatch) -> tuple[Sequence[torch.Tensor], Scores]:
        parameters = {name: p.detach() for name, p in self.named_parameters()}
        # Contiguous, because the compiled code is for the strides that it has seen.
        images = [
            tensor.contiguous() for tensor in (tasks.support, tasks.support_labels, tasks.query, tasks.query_labels)
        ]
        gradients, scores = self._compiled(parameters, *images)
        # Cloned, because on a GPU the next chunk's are written where these lie.
        return list(gradients.values()), Scores(*(part.clone() for part in scores))

    def _compile(self, tasks: TaskBatch, inner_steps: int, normalisation: str) -> None:
        """Compile by taking one meta-gradient; warn and stay uncompiled where this machine cannot, or gets it wrong."""

        def chunk_gradient(parameters: Parameters, *tensors: torch.Tensor) -> tuple[Parameters, Scores]:
            chunk = TaskBatch(*tensors, ways=tasks.ways)

            def loss(parameters: Parameters) -> tuple[torch.Tensor, Scores]:
                logits = self._adapt_and_score(parameters, chunk, [inner_steps], normalisation)[0]
                scores = score(logits, chunk.query_labels)
                return scores.losses.sum(), scores

            return grad(loss, has_aux=True)(parameters)

        # TorchDynamo files what it compiled under the code object, and refuses a ninth: each learner brings its own.
        chunk_gradient.__code__ = chunk_gradient.__code__.replace()
        tqdm.write("compiling the meta-gradient, which takes a minute or more (run.compile: false does without)")
        start = time.perf_counter()
        # Launching its kernels one by one would take a GPU longer than running them: CUDA graphs launch all at once.
        mode = "reduce-overhead" if tasks.support.is_cuda else None
        self._compiled = torch.compile(chunk_gradient, dynamic=False, fullgraph=True, mode=mode)
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", module=r"torch\._inductor")  # advice to who writes kernels
                found = self._run_compiled(tasks)[0]
            _check_gradient(found, super()._chunk_gradient(tasks, inner_steps, normalisation)[0])
        except Exception as error:  # the compiler's stack raises its own errors, the C++ compiler's among them
            self._compiled = None
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            warnings.warn(f"training goes on uncompiled, because compiling failed: {reason}", stacklevel=2)
        else:
            tqdm.write(f"compiled in {time.perf_counter() - start:.0f} s")


def _check_gradient(found: Sequence[torch.Tensor], expected: Sequence[torch.Tensor]) -> None:
    """Raise `ArithmeticError` where the compiled code computes something else, as bfloat16's does on some CPUs."""
    found, expected = (torch.cat([part.flatten() for part in parts]) for parts in (found, expected))
    difference, norm = (found - expected).norm().item(), expected.norm().item()
    if not difference <= _MOST_DIFFERENCE * norm:
        raise ArithmeticError(f"the compiled gradient is off by {difference:.1e}, at a norm of {norm:.1e}")
