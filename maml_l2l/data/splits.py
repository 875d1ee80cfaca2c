"""Named class splits: which classes train, which validate, which test.

A split is a pure function of the class names, the same in every process on every machine.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

from maml_l2l.data.omniglot import EVALUATION_ALPHABETS
from maml_l2l.errors import UserError

SPLITS = ("train", "val", "test")
ClassSplit = dict[str, list[str]]

# Finn et al. (2017) train on 1,100 characters, validate on 100 and test on the other 423 of the 1,623.
_FINN_TRAIN, _FINN_VAL, _FINN_ALL = 1100, 100, 1623
_FINN_SEED = "finn-2017"
_VALIDATION_ALPHABETS = ("Balinese", "Futurama", "Japanese_(katakana)", "N_Ko", "Tagalog")


def finn_split(class_names: Iterable[str]) -> ClassSplit:
    """Finn et al.'s proportions: 1,100 / 100 / 423 of Omniglot's 1,623 characters, the same shares of a smaller set.

    The order is that of a SHA-256 of a fixed seed and the name, which no Python version and no directory order changes.
    """
    order = sorted(class_names, key=lambda name: hashlib.sha256(f"{_FINN_SEED}/{name}".encode()).digest())
    train_end = round(len(order) * _FINN_TRAIN / _FINN_ALL)
    val_end = round(len(order) * (_FINN_TRAIN + _FINN_VAL) / _FINN_ALL)
    parts = order[:train_end], order[train_end:val_end], order[val_end:]
    return {split: sorted(part) for split, part in zip(SPLITS, parts, strict=True)}


def alphabet_split(class_names: Sequence[str], validation: Iterable[str], test: Iterable[str]) -> ClassSplit:
    """Whole alphabets apart: `validation` and `test` name alphabets, every other alphabet trains."""
    home = dict.fromkeys(validation, "val") | dict.fromkeys(test, "test")
    parts: ClassSplit = {split: [] for split in SPLITS}
    for name in sorted(class_names):
        parts[home.get(name.partition("/")[0], "train")].append(name)
    return parts


def omniglot_alphabets(class_names: Sequence[str]) -> ClassSplit:
    """Test = the 20 evaluation alphabets; five of the 30 background alphabets validate, the others train."""
    return alphabet_split(class_names, _VALIDATION_ALPHABETS, EVALUATION_ALPHABETS)


def glyph_alphabets(class_names: Sequence[str]) -> ClassSplit:
    """Omniglot's shares: the last two fifths of the alphabets test, a tenth (one at least) before them validates."""
    alphabets = sorted({name.partition("/")[0] for name in class_names})
    test = round(len(alphabets) * 0.4)
    validation = max(1, round(len(alphabets) * 0.1))
    return alphabet_split(class_names, alphabets[-test - validation : -test], alphabets[-test:])


def check_split(split: ClassSplit, class_names: Iterable[str]) -> None:
    """Raise `UserError` where a split, e.g. a checkpoint's, names classes that the data set does not hold."""
    known = set(class_names)
    missing = [name for part in split.values() for name in part if name not in known]
    if missing:
        raise UserError(
            f"{len(missing)} classes of the split are not in the data set, the first is {missing[0]!r}. "
            "Point to the data that the checkpoint was trained on."
        )
