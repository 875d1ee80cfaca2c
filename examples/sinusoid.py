"""The paper's regression (Finn et al., 2017, section 5.1): learn to fit a sine from 5 or 10 points, as in its figure 2.

python examples/sinusoid.py [META_ITERATIONS [PICTURE]]
"""

import math
import sys

import matplotlib.pyplot as plt
import torch
from torch import nn

import maml_l2l


def tasks(count, points, queries, generator):
    """Waves of amplitude 0.1 to 5 and phase 0 to pi at x from -5 to 5: inputs and targets (count, ..., 1)."""
    amplitude, phase = torch.rand(2, count, 1, 1, generator=generator) * torch.tensor([4.9, math.pi]).view(2, 1, 1, 1)
    x = torch.rand(count, points, 1, generator=generator) * 10 - 5
    grid = torch.linspace(-5, 5, queries)[None, :, None].expand(count, -1, 1)
    y, truth = ((0.1 + amplitude) * torch.sin(inputs - phase) for inputs in (x, grid))
    return maml_l2l.TaskBatch(x, y, grid, truth)


def main(iterations=10_000, picture="sinusoid.png"):
    """Meta-train with 10 points and one inner step; adapt with 5 and 10 points for up to 10 steps."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    network = nn.Sequential(nn.Linear(1, 40), nn.ReLU(), nn.Linear(40, 40), nn.ReLU(), nn.Linear(40, 1))
    learner = maml_l2l.VectorizedMAML(network, lr=0.01, loss=nn.functional.mse_loss)
    optimizer = torch.optim.Adam(learner.parameters(), lr=1e-3)
    for number in range(1, iterations + 1):
        losses = learner.meta_gradient(tasks(25, 10, 10, generator), inner_steps=1).losses
        optimizer.step()
        if number % max(1, iterations // 10) == 0:
            print(f"meta-iteration {number}: mean squared error after one step {losses.mean():.3f}")
    figure, (*fits, errors) = plt.subplots(1, 3, figsize=(13, 3.6), layout="constrained")
    for panel, points in zip(fits, (5, 10), strict=True):
        batch = tasks(600, points, 100, torch.Generator().manual_seed(1))
        with torch.no_grad():
            outputs = learner.adapt_and_score(batch, range(11))  # (steps, tasks, queries, 1)
        found = (outputs - batch.query_labels).square().mean((1, 2, 3))
        print(f"{points} points:", ", ".join(f"{error:.2f}" for error in found), "after 0, 1, ..., 10 steps")
        errors.plot(found, "o-", label=f"{points} points")
        grid = batch.query[0, :, 0]
        panel.plot(grid, batch.query_labels[0], "k", label="truth")
        for steps, style in ((0, ":"), (1, "--"), (10, "-")):
            panel.plot(grid, outputs[steps, 0], f"C0{style}", label=f"{steps} steps")
        panel.plot(batch.support[0], batch.support_labels[0], "C3^", label="points given")
        panel.set(title=f"one task, {points} points", xlabel="x", ylabel="y")
    errors.set(title="600 tasks", xlabel="inner steps", ylabel="mean squared error", yscale="log")
    fits[0].legend(), errors.legend()
    figure.savefig(picture)


if __name__ == "__main__":
    main(*(kind(value) for kind, value in zip((int, str), sys.argv[1:], strict=False)))
