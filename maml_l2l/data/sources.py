"""From the `data` section of a config to decoded images and their class split."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from maml_l2l.config import Data
from maml_l2l.data.class_folders import looks_like_classes
from maml_l2l.data.folder import load_folder
from maml_l2l.data.glyphs import load_glyphs
from maml_l2l.data.labelled_images import LabelledImages, joined
from maml_l2l.data.omniglot import load_omniglot
from maml_l2l.data.omniglot_folder import holds_omniglot
from maml_l2l.data.splits import (
    ClassSplit,
    finn_split,
    fraction_split,
    given_split,
    glyph_alphabets,
    omniglot_alphabets,
)
from maml_l2l.system.errors import UserError

_GLYPHS = "glyphs"  # the first part of their names among the `drawings`; no alphabet of Omniglot's, so they train


def load_data(data: Data) -> LabelledImages:
    """All images that `data` names, decoded; downloaded or drawn first where they are absent."""
    root = Path(data.root)
    if data.name == "folder":
        return load_folder(data)
    _check_no_pictures(root, data.name)
    if data.name == "omniglot":
        return load_omniglot(root, source=data.source, verify=data.verify, ink=data.ink)
    glyphs = load_glyphs(root, alphabets=data.alphabets, ink=data.ink)
    if data.name == "glyphs":
        return glyphs
    renamed = replace(glyphs, class_names=tuple(f"{_GLYPHS}/{name}" for name in glyphs.class_names))
    return joined(load_omniglot(root, source=data.source, verify=data.verify, ink=data.ink), renamed)


def _check_no_pictures(root: Path, name: str) -> None:
    """Raise `UserError` where `root` is a folder of the user's pictures, into which nothing else is to be put."""
    try:
        own = not holds_omniglot(root) and looks_like_classes(root)
    except OSError:  # something there is not to be read, as `lost+found`; whether that matters is found later
        return
    if own:
        raise UserError(
            f"{root} holds folders of pictures, and data.name is {name}, which would be put beside them. To take the "
            "pictures: --set data.name=folder. Otherwise name another folder."
        )


def class_split(data: Data, images: LabelledImages) -> ClassSplit:
    """The names of the classes that train, validate and test, as `data` says, or as a folder comes split already."""
    if images.parts is not None:
        return given_split(images.class_names, images.parts, data.val_fraction, data.split_seed)
    if data.name == "folder":
        return fraction_split(images.class_names, data.val_fraction, data.test_fraction, data.split_seed)
    if data.split == "finn":
        return finn_split(images.class_names)
    return (glyph_alphabets if data.name == "glyphs" else omniglot_alphabets)(images.class_names)


def split_in_words(data: Data, images: LabelledImages, split: ClassSplit) -> str:
    """One line that says how many classes of a folder train, validate and test, and who has split them."""
    counts = ", ".join(f"{len(names)} {part}" for part, names in split.items())
    if images.parts is None:
        how = f"at random (data.split_seed {data.split_seed})"
    else:
        how = "by its folders" + ("" if "val" in images.parts else ", val out of train at random")
    return f"the classes of {data.root} are split {how}: {counts}"
