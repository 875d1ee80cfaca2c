"""The meta-gradient as other packages take it, for `benchmarks/engines.py`: the same network, tasks and loss.

Each function returns `step()`, which takes one meta-gradient over all tasks, or raises `ImportError` where its package
is not installed (`pip install -e .[peers]`).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
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
                loss.backward()

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


def jax_step(network: Conv4, tasks: TaskBatch, inner_lr: float, steps: int, first_order: bool) -> Callable[[], None]:
    """JAX: `jit(grad(vmap(...)))`, its convolution written as patches @ weights, the faster of its two ways here."""
    import jax
    from jax import numpy as jnp

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
