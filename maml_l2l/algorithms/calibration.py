"""How far probabilities mean what they say, and the temperature that mends them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from scipy.optimize import minimize_scalar
from torch.nn import functional as F

_BINS = 15
_TEMPERATURES = 0.01, 100.0  # between which the best one is looked for


class Calibration(NamedTuple):
    """On tasks of `ways` classes the accuracy, and the calibration error before and after, all in percent."""

    ways: int
    accuracy: float
    before: float
    after: float


def fitted_temperature(answers: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> float:
    """The temperature of least cross-entropy, which every one of `answers` weighs alike in.

    answers: logits (N, ways) and labels (N,) int64 of each.
    """

    def loss(logarithm: float) -> float:
        temperature = math.exp(logarithm)
        return sum(F.cross_entropy(logits / temperature, labels).item() for logits, labels in answers)

    bounds = tuple(map(math.log, _TEMPERATURES))
    return math.exp(minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-4}).x)


def calibration_error(probabilities: torch.Tensor, labels: torch.Tensor, bins: int = _BINS) -> float:
    """The expected calibration error, from 0 to 1 (Naeini et al., 2015; Guo et al., 2017, equation 3).

    The mean distance of accuracy and confidence over `bins` equal ranges of the confidence, weighted by their answers.
    probabilities: (N, ways).  labels: (N,) int64.
    """
    confidence, answer = probabilities.double().max(1)
    right = (answer == labels).double()
    bin_of = (confidence * bins).ceil().long().clamp(1, bins) - 1
    gaps = torch.zeros(bins, dtype=torch.float64).index_add(0, bin_of, right - confidence)
    return (gaps.abs().sum() / len(labels)).item()
