"""From the `data` section of a config to decoded images and their class split."""

from __future__ import annotations

from pathlib import Path

from maml_l2l.config import Data
from maml_l2l.data.glyphs import load_glyphs
from maml_l2l.data.images import LabelledImages
from maml_l2l.data.omniglot import load_omniglot
from maml_l2l.data.splits import ClassSplit, finn_split, glyph_alphabets, omniglot_alphabets


def load_data(data: Data) -> LabelledImages:
    """All images that `data` names, decoded; downloaded or drawn first where they are absent."""
    root = Path(data.root)
    if data.name == "glyphs":
        return load_glyphs(root, alphabets=data.alphabets)
    return load_omniglot(root, source=data.source, verify=data.verify)


def class_split(data: Data, images: LabelledImages) -> ClassSplit:
    """The names of the classes that train, validate and test, as `data.split` says."""
    if data.split == "finn":
        return finn_split(images.class_names)
    return (glyph_alphabets if data.name == "glyphs" else omniglot_alphabets)(images.class_names)
