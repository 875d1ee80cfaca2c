"""learn2learn's loop for Omniglot, and the same with the fast engine: the same losses.

The fast engine is for GPUs, and for CPUs once it is compiled: `maml.compiled = True`, which takes a minute.

    python examples/from_learn2learn.py [META_ITERATIONS]
"""

import random
import sys

import learn2learn as l2l
import torch
from learn2learn.data import MetaDataset, Taskset
from learn2learn.data.transforms import ConsecutiveLabels, KShots, LoadData, NWays, RemapLabels
from torch.nn.functional import cross_entropy

import maml_l2l
from maml_l2l.backbones import Conv4
from maml_l2l.data.sources import load_data

WAYS, SHOTS, TASKS, STEPS = 5, 1, 32, 1


def loop(network, taskset, iterations):
    maml = l2l.algorithms.MAML(network, lr=0.5)
    optimizer = torch.optim.Adam(maml.parameters(), lr=0.003)
    for _ in range(iterations):
        optimizer.zero_grad()
        losses = []
        for _ in range(TASKS):
            learner = maml.clone()
            images, labels = (part.unflatten(0, (WAYS, -1)) for part in taskset.sample())
            for _ in range(STEPS):
                learner.adapt(cross_entropy(learner(images[:, :SHOTS].flatten(0, 1)), labels[:, :SHOTS].flatten()))
            losses.append(cross_entropy(learner(images[:, SHOTS:].flatten(0, 1)), labels[:, SHOTS:].flatten()))
            (losses[-1] / TASKS).backward()
        optimizer.step()
        yield torch.stack(losses).mean().item()


def fast(network, taskset, iterations):
    maml = maml_l2l.VectorizedMAML(network, lr=0.5)
    optimizer = torch.optim.Adam(maml.parameters(), lr=0.003)
    for _ in range(iterations):
        tasks = maml_l2l.TaskBatch.from_taskset(taskset, TASKS, SHOTS)
        scores = maml.meta_gradient(tasks, inner_steps=STEPS)
        optimizer.step()
        yield scores.losses.mean().item()


if __name__ == "__main__":
    drawings = load_data(maml_l2l.load_experiment(None, ["data.name=glyphs", "data.alphabets=3"]).data)
    dataset = MetaDataset(torch.utils.data.TensorDataset(drawings.pixels / 255, drawings.labels))
    transforms = [NWays(dataset, WAYS), KShots(dataset, 2 * SHOTS), LoadData(dataset)]
    taskset = Taskset(dataset, [*transforms, RemapLabels(dataset), ConsecutiveLabels(dataset)])
    for run in (loop, fast):
        random.seed(0), torch.manual_seed(0)
        for number, loss in enumerate(run(Conv4(WAYS), taskset, int(sys.argv[1]) if sys.argv[1:] else 20)):
            print(f"{run.__name__}: meta-iteration {number + 1}, loss {loss:.4f}")
