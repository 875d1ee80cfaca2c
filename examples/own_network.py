"""Train, evaluate and predict with a network that this package does not know: torchvision's ResNet-18.

    python examples/own_network.py [SECTION.KEY=VALUE ...]

From the command line the same goes as `python -m maml_l2l.train --set model.name=examples.own_network:resnet18`.
"""

import sys
from typing import Any

import numpy as np
import torch
import torchvision

import maml_l2l


def resnet18(ways: int, channels: int) -> torch.nn.Module:
    """Images (N, channels, H, W) -> logits (N, ways); the first layers are those for small images."""
    network = torchvision.models.resnet18(num_classes=ways)
    network.conv1 = torch.nn.Conv2d(channels, 64, kernel_size=3, padding=1, bias=False)
    network.maxpool = torch.nn.Identity()
    return torch.func.replace_all_batch_norm_modules_(network)  # the statistics of the images at hand


def drawing(*strokes: tuple[slice, slice]) -> np.ndarray[Any, Any]:
    """(105, 105) uint8: black strokes on white."""
    paper = np.full((105, 105), 255, np.uint8)
    for rows, columns in strokes:
        paper[rows, columns] = 0
    return paper


def main(settings: list[str]) -> None:
    """Everything that the file of a network goes through."""
    maml_l2l.register_backbone("resnet18", resnet18)
    usual = ["data.name=glyphs", "model.name=resnet18", "algorithm.inner_lr=0.1", "train.meta_batch=4"]
    experiment = maml_l2l.load_experiment(None, [*usual, "train.iterations=1000", *settings])
    maml_l2l.train(experiment, "runs/own_network")
    evaluation = maml_l2l.evaluate("runs/own_network/best.pth")
    for steps, mean, ci95 in zip(evaluation.steps, evaluation.mean(), evaluation.ci95(), strict=True):
        print(f"{steps} inner steps: {mean:.1f} ± {ci95:.1f} %")
    upright, level = slice(20, 85), slice(50, 56)
    cross, bar = drawing((upright, level), (level, upright)), drawing((upright, level))
    classifier = maml_l2l.FewShotClassifier("runs/own_network/best.pth").fit([cross, bar], ["cross", "bar"])
    print("a cross, moved:", *classifier.predict([np.roll(cross, 8, axis=1)]))


if __name__ == "__main__":
    main(sys.argv[1:])
