"""Class splits: fixed, complete, and disjoint where it counts, in the tasks drawn from them."""

import hashlib
import random

import pytest

from maml_l2l.config import Data
from maml_l2l.data.glyphs import load_glyphs
from maml_l2l.data.omniglot import load_omniglot
from maml_l2l.data.sources import class_split
from maml_l2l.data.splits import SPLITS, finn_split
from maml_l2l.tasks.stream import TaskStream
from tests.images import identities, numbered_images


def omniglot_like_names():
    return [f"Alphabet_{index // 33:02d}/character{index % 33 + 1:02d}" for index in range(1623)]


def digest(split):
    return hashlib.sha256(repr([split[name] for name in SPLITS]).encode()).hexdigest()[:16]


def test_finn_has_the_sizes_of_the_paper_and_ignores_the_order_of_the_names():
    names = omniglot_like_names()
    split = finn_split(names)
    assert [len(split[name]) for name in SPLITS] == [1100, 100, 423]
    random.Random(0).shuffle(names)
    assert finn_split(names) == split
    assert sorted(name for part in split.values() for name in part) == sorted(names)


def test_finn_is_the_same_list_for_ever():
    assert digest(finn_split(omniglot_like_names())) == "b015924e37709fb1"


def test_omniglot_splits(omniglot_root):
    images = load_omniglot(omniglot_root)
    finn = class_split(Data(split="finn"), images)
    assert [len(finn[name]) for name in SPLITS] == [1100, 100, 423]
    assert digest(finn) == "847db74eb2f57c34"
    alphabets = class_split(Data(split="alphabets"), images)
    homes = {name: {member.split("/")[0] for member in alphabets[name]} for name in SPLITS}
    assert [len(homes[name]) for name in SPLITS] == [25, 5, 20]
    assert len(alphabets["test"]) == 659
    assert "Tengwar" in homes["test"]


@pytest.mark.parametrize("split_name", ["finn", "alphabets"])
def test_tasks_of_different_splits_never_share_a_class(split_name, tmp_path):
    """Proved by sampling: every class of the glyphs' splits is drawn, and none is drawn by two streams."""
    glyphs = load_glyphs(tmp_path, alphabets=3)
    split = class_split(Data(name="glyphs", alphabets=3, split=split_name), glyphs)
    numbered = numbered_images(len(glyphs.class_names), 2)
    names = dict(zip(glyphs.class_names, numbered.class_names, strict=True))
    drawn = {}
    for part in SPLITS:
        classes = [names[name] for name in split[part]]
        sizes = {"ways": 2, "shots": 1, "queries": 1}
        stream = TaskStream(numbered, classes, split=part, rotate=True, seed=0, **sizes)
        drawn[part] = set(identities(stream.batch(0, 400).support)[..., 0].flatten().tolist())
    assert sum(len(classes) for classes in drawn.values()) == len(set.union(*drawn.values())) == len(names)
