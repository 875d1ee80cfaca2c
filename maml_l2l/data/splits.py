"""Named class splits: which classes train, which validate, which test.

A split is a pure function of the class names, the same in every process on every machine.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Iterator, Sequence

from maml_l2l.data.omniglot import EVALUATION_ALPHABETS
from maml_l2l.system.errors import UserError

SPLITS = ("train", "val", "test")
ClassSplit = dict[str, list[str]]

# Finn et al. (2017) train on 1,100 characters, validate on 100 and test on the other 423 of the 1,623.
_FINN_TRAIN, _FINN_VAL, _FINN_ALL = 1100, 100, 1623
_FINN_SEED = "finn-2017"
_VALIDATION_ALPHABETS = ("Balinese", "Futurama", "Japanese_(katakana)", "N_Ko", "Tagalog")


def _shuffled(class_names: Iterable[str], seed: str) -> list[str]:
    """In the order of a SHA-256 of seed and name, which no Python version and no directory order changes."""

    def key(name: str) -> bytes:
        return hashlib.sha256(f"{seed}/{name}".encode(errors="surrogateescape")).digest()

    return sorted(class_names, key=key)


def finn_split(class_names: Iterable[str]) -> ClassSplit:
    """Finn et al.'s proportions: 1,100 / 100 / 423 of Omniglot's 1,623 characters, the same shares of a smaller set.

    See `_shuffled` for the order.
    """
    order = _shuffled(class_names, _FINN_SEED)
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


def fraction_split(class_names: Iterable[str], val_fraction: float, test_fraction: float, seed: int) -> ClassSplit:
    """The nearest whole numbers of classes to these shares validate and test, the others train; see `_shuffled`."""
    order = _shuffled(class_names, str(seed))
    val_end = round(len(order) * val_fraction)
    test_end = val_end + round(len(order) * test_fraction)
    return {"train": sorted(order[test_end:]), "val": sorted(order[:val_end]), "test": sorted(order[val_end:test_end])}


def given_split(class_names: Sequence[str], parts: Sequence[str], val_fraction: float, seed: int) -> ClassSplit:
    """`parts` names the split of each class; where none validates, a share of those that train does."""
    split = {name: [c for c, part in zip(class_names, parts, strict=True) if part == name] for name in SPLITS}
    if not split["val"]:
        carved = fraction_split(split["train"], val_fraction, 0, seed)
        split |= {"train": carved["train"], "val": carved["val"]}
    return split


def unseen_classes(
    split: ClassSplit, part: str, class_names: Sequence[str], earlier_classes: Iterable[str] = ()
) -> list[str]:
    """The classes of `part` of a checkpoint's split; or those of a data set that shares no class with that split.

    The names of the data set count where they are those of the split, or else as `origins` recognises them.
    earlier_classes: left out of another data set, because the networks before the checkpoint's were trained on them.
    Raises `UserError` where the data set holds some classes of the split, but not all of `part`, or one of them twice.
    """
    origin = origins(class_names, {name for names in split.values() for name in names})
    if not origin:
        earlier = origins(class_names, set(earlier_classes))
        return [name for name in class_names if name not in earlier]
    names_of: dict[str, list[str]] = {name: [] for name in split[part]}
    for name, known in origin.items():
        names_of.get(known, []).append(name)
    missing = [name for name, found in names_of.items() if not found]
    if missing:
        raise UserError(
            f"{len(missing)} of the {len(split[part])} {part} classes of the checkpoint are not in the data set, the "
            f"first is {missing[0]!r}. Point to the data that the checkpoint was trained on, or to classes of which it "
            "has seen none."
        )
    twice = next((found for found in names_of.values() if len(found) > 1), None)
    if twice:
        raise UserError(f"{' and '.join(twice)} are one class of the checkpoint. Point to a folder that has it once.")
    return [name for (name,) in names_of.values()]


def origins(class_names: Sequence[str], known: Collection[str]) -> dict[str, str]:
    """Which of the `known` names each of `class_names` is; those that are none are left out.

    Where none is known as it is, they may stand deeper in their folder or higher than they did: `up/cat` is `cat`, and
    `cat` is `up/cat` if no other known name ends so.
    """
    exact = {name: name for name in class_names if name in known}
    if exact:
        return exact
    ending_in: dict[str, list[str]] = {}
    for name in known:
        for end in _ends(name):
            ending_in.setdefault(end, []).append(name)
    found = {}
    for name in class_names:
        deeper = next((end for end in _ends(name) if end in known), None)
        higher = ending_in.get(name, [])
        if deeper is not None:
            found[name] = deeper
        elif len(higher) == 1:
            found[name] = higher[0]
    return found


def _ends(name: str) -> Iterator[str]:
    """`a/b/c`: `b/c`, `c`."""
    while "/" in name:
        name = name.partition("/")[2]
        yield name
