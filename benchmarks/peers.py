"""The meta-gradient as other packages take it, for the benchmarks of engines: the same network, tasks and loss.

Each function returns `step()`, which takes one meta-gradient over all tasks, or raises `ImportError` where its package
is not installed (`pip install -e .[peers]`) or cannot do what is asked.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import repeat

import torch
from torch import nn
from torch.nn import functional as F

from maml_l2l.backbones import Conv4
from maml_l2l.tasks.batch import TaskBatch


def higher_step(network: Conv4, tasks: TaskBatch, inner_lr: float, steps: int, first_order: bool) -> Callable[[], None]:
    """`higher`: a differentiable copy of the network and of SGD for each task (Grefenstette et al., 2019)."""
    import higher

    optimizer = torch.optim.SGD(network.parameters(), lr=inner_lr)

    def step() -> None:
        network.zero_grad()
        for task in tasks.chunks(1):
            options = {"copy_initial_weights": False, "track_higher_grads": not first_order}
            with higher.innerloop_ctx(network, optimizer, **options) as (copy, inner_optimizer):
                for _ in range(steps):
                    inner_optimizer.step(F.cross_entropy(copy(task.support[0]), task.support_labels[0]))
                loss = F.cross_entropy(copy(task.query[0]), task.query_labels[0]) / len(tasks)
                if not first_order:
                    loss.backward()
                    continue
                # Nothing leads back from the copy then: its own gradient is the first-order one.
                gradients = torch.autograd.grad(loss, list(copy.parameters()))
                for parameter, gradient in zip(network.parameters(), gradients, strict=True):
                    parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient

    return step


def torchopt_step(
    network: Conv4, tasks: TaskBatch, inner_lr: float, steps: int, first_order: bool
) -> Callable[[], None]:
    """TorchOpt's `MetaSGD`, whose state is taken before each task and put back after it (Ren et al., 2023)."""
    import torchopt

    if first_order:
        raise ImportError("MetaSGD has no first-order mode")
    optimizer = torchopt.MetaSGD(network, lr=inner_lr)

    def step() -> None:
        network.zero_grad()
        start, state = torchopt.extract_state_dict(network, by="reference"), optimizer.state_dict()
        for task in tasks.chunks(1):
            for _ in range(steps):
                optimizer.step(F.cross_entropy(network(task.support[0]), task.support_labels[0]))
            (F.cross_entropy(network(task.query[0]), task.query_labels[0]) / len(tasks)).backward()
            torchopt.recover_state_dict(network, start)
            optimizer.load_state_dict(state)

    return step


class _WithLogits(nn.Module):
    """What parallel-metalearn wants of a network: named results, and the parameters that the inner loop adapts."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, x: torch.Tensor, **_: object) -> dict[str, torch.Tensor]:
        return {"logits": self.network(x)}

    def get_fast_weights(self) -> dict[str, torch.Tensor]:
        return dict(self.named_parameters())


def parallel_metalearn_step(
    network: Conv4, tasks: TaskBatch, inner_lr: float, steps: int, first_order: bool
) -> Callable[[], None]:
    """parallel-metalearn's `MAML` one task after another, with an outer step of size 0.

    Its other way, all tasks by `vmap`, is slower on a CPU, and its gradient through batch normalisation is inexact.
    """
    from metalearn.algorithms import MAML
    from metalearn.inner_optimizers import InnerSGD
    from metalearn.loss import CategoricalAccuracy, CrossEntropy

    model = _WithLogits(network)
    inner = InnerSGD(model.get_fast_weights(), first_order=first_order, inner_lr=inner_lr, learn_lr=False)
    learner = MAML(
        model=model,
        optimizer=torch.optim.SGD(network.parameters(), lr=0.0),
        inner_optimizer=inner,
        support_loss_fn=CrossEntropy(CategoricalAccuracy()),
        inner_steps=steps,
        backend="sequential",
        device=tasks.support.device,
    )
    batch = tasks.support, {"labels": tasks.support_labels}, tasks.query, {"labels": tasks.query_labels}
    return lambda: learner.step(repeat(batch))


def jax_step(network: Conv4, tasks: TaskBatch, inner_lr: float, steps: int, first_order: bool) -> Callable[[], None]:
    """JAX: `jit(grad(vmap(...)))`, its convolution written as patches @ weights, the faster of its two ways here."""
    import jax
    from jax import numpy as jnp

    if network.pool or tasks.support.is_cuda:
        raise ImportError("JAX is measured with stride on the CPU only")

    parameters = {name: jnp.asarray(value.detach().numpy()) for name, value in network.named_parameters()}

    def convolve(x: jax.Array, weight: jax.Array) -> jax.Array:
        filters, channels = weight.shape[:2]
        rows, columns = (x.shape[1] + 1) // 2, (x.shape[2] + 1) // 2
        x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
        taps = [x[:, i : i + 2 * rows - 1 : 2, j : j + 2 * columns - 1 : 2] for i in range(3) for j in range(3)]
        return jnp.concatenate(taps, -1) @ weight.transpose(2, 3, 1, 0).reshape(9 * channels, filters)

    def logits(parameters: dict, x: jax.Array) -> jax.Array:
        for index in range(4):
            x = convolve(x, parameters[f"convolutions.{index}.weight"]) + parameters[f"convolutions.{index}.bias"]
            x = (x - x.mean((0, 1, 2))) / jnp.sqrt(x.var((0, 1, 2)) + 1e-5)
            x = jax.nn.relu(x * parameters[f"norms.{index}.weight"] + parameters[f"norms.{index}.bias"])
        return x.mean((1, 2)) @ parameters["head.weight"].T + parameters["head.bias"]

    def loss(parameters: dict, x: jax.Array, labels: jax.Array) -> jax.Array:
        return -jnp.take_along_axis(jax.nn.log_softmax(logits(parameters, x)), labels[:, None], 1).mean()

    def query_loss(parameters: dict, support, support_labels, query, query_labels) -> jax.Array:
        for _ in range(steps):
            gradients = jax.grad(loss)(parameters, support, support_labels)
            if first_order:
                gradients = jax.lax.stop_gradient(gradients)
            parameters = jax.tree.map(lambda p, g: p - inner_lr * g, parameters, gradients)
        return loss(parameters, query, query_labels)

    @jax.jit
    def meta_gradient(parameters: dict, arrays: tuple) -> dict:
        return jax.grad(lambda p: jax.vmap(query_loss, in_axes=(None, 0, 0, 0, 0))(p, *arrays).mean())(parameters)

    images = [jnp.asarray(x.permute(0, 1, 3, 4, 2).contiguous().numpy()) for x in (tasks.support, tasks.query)]
    labels = [jnp.asarray(y.contiguous().numpy()) for y in (tasks.support_labels, tasks.query_labels)]
    arrays = (images[0], labels[0], images[1], labels[1])

    def step() -> dict:
        return jax.block_until_ready(meta_gradient(parameters, arrays))

    return step


PEERS = {
    "higher": higher_step,
    "torchopt": torchopt_step,
    "parallel-metalearn": parallel_metalearn_step,
    "jax": jax_step,
}
