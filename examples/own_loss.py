"""A loss of one's own in both loops, and a layer that neither changes: a hinge loss on drawings of glyphs.

python examples/own_loss.py [META_ITERATIONS [ALPHABETS]]
"""

import sys

import torch
from torch.nn.functional import cross_entropy

import maml_l2l
from maml_l2l.backbones import Conv4
from maml_l2l.data.sources import load_data


def hinge(outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """outputs (n, ways) and labels (n,) of one task -> how far other classes come within a margin of 1, on average."""
    right = outputs.gather(1, labels[:, None])
    return (1 + outputs - right).clamp(min=0).sum(1).mean() - 1  # the right class itself adds 1


def main(iterations: int = 200, alphabets: int = 10) -> None:
    """Meta-train from the same start with two losses; accuracy on classes that training never saw."""
    images = load_data(maml_l2l.load_experiment(None, ["data.name=glyphs", f"data.alphabets={alphabets}"]).data)

    def stream(split: str, classes: tuple[str, ...]) -> maml_l2l.TaskStream:
        return maml_l2l.TaskStream(images, list(classes), split=split, ways=5, shots=1, queries=5, rotate=True, seed=0)

    seen, unseen = stream("train", images.class_names[:-60]), stream("test", images.class_names[-60:]).batch(0, 100)
    for loss in (cross_entropy, hinge):
        torch.manual_seed(0)
        network = Conv4(ways=5, filters=32)
        network.convolutions[0].requires_grad_(False)  # frozen: a random first layer
        learner = maml_l2l.VectorizedMAML(network, lr=0.4, loss=loss)
        optimizer = torch.optim.Adam(filter(lambda p: p.requires_grad, learner.parameters()), lr=3e-3)
        for number in range(iterations):
            learner.meta_gradient(seen.batch(start=16 * number, count=16), inner_steps=1)
            optimizer.step()
        with torch.no_grad():
            outputs = learner.adapt_and_score(unseen, steps=range(4))
        right = (outputs.argmax(-1) == unseen.query_labels).double().mean((1, 2))
        print(f"{loss.__name__}:", ", ".join(f"{100 * part:.1f} %" for part in right), "after 0, 1, 2, 3 steps")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
