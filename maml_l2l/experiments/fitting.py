"""Whether what is asked of a checkpoint is what it can do: its keys, and its images."""

from __future__ import annotations

from collections.abc import Sequence

from maml_l2l.checkpoints.checkpoint import Checkpoint
from maml_l2l.config import Experiment, changed_keys
from maml_l2l.data.labelled_images import LabelledImages
from maml_l2l.system.errors import UserError

# Keys that an evaluation takes from its own config; the others are the checkpoint's, which they have made.
_OWN_SECTIONS = ("data", "task", "eval")
_OWN = (
    *("algorithm.engine", "algorithm.task_chunk", "algorithm.normalisation"),
    *("run.seed", "run.device", "run.threads", "run.compile"),
)
_SPLIT_ONCE = ("data.split", "data.val_fraction", "data.test_fraction", "data.split_seed")


def check_changes(trained: Experiment, wanted: Experiment) -> None:
    """Raise `UserError` where `wanted` changes a key that the training has decided."""
    for key, (old, new) in changed_keys(trained, wanted).items():
        own = key in _OWN or (key.partition(".")[0] in _OWN_SECTIONS and key not in _SPLIT_ONCE)
        if not own:
            raise UserError(
                f"the checkpoint was trained with `{key}` {old!r}, which an evaluation cannot change, found {new!r}. "
                "Leave it out, or train with it."
            )


def check_images(networks: Sequence[Checkpoint], images: LabelledImages) -> None:
    """Raise `UserError` where one of `networks` takes images of another size or number of channels."""
    found = {"channels": images.pixels.shape[1], "image_size": images.pixels.shape[-1]}
    for network in networks:
        for key, value in found.items():
            trained = network.backbone.get(key, value)  # a network that does not ask for it takes any
            if trained != value:
                raise UserError(
                    f"the checkpoint's network takes images of {key} {trained}, the data have {value}. "
                    f"Set data.{key}={trained}."
                )
