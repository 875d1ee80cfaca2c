"""Self-describing `.pth` checkpoints: written atomically, loaded without running code."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch

from maml_l2l.algorithms import MetaLearner, build_learner
from maml_l2l.backbones import LibraryNetwork, backbone_arguments, build_backbone
from maml_l2l.checkpoints.validation import checked_contents
from maml_l2l.config import Algorithm, Experiment, parse_experiment
from maml_l2l.config.problems import shown
from maml_l2l.data.splits import SPLITS, ClassSplit
from maml_l2l.pretrained import PHOTOS, find_checkpoint, library_network
from maml_l2l.system.errors import UserError
from maml_l2l.system.files import user_path, write_atomically
from maml_l2l.system.torch_files import load_torch_file, save_torch_file

FORMAT = "maml_l2l checkpoint"
VERSION = 1
MAX_BYTES = 2**30  # 700 times what 64 filters take
_REMEDY = "Give the path of a `.pth` file that training wrote."


@dataclass(frozen=True)
class Checkpoint:
    """All that evaluation and resuming need.

    config: the resolved experiment, as nested dictionaries.       split: class names of train, val and test.
    iteration: meta-iterations done.                                validation_accuracy: percent, None before the first.
    backbone: name and arguments, see `build_backbone`.             weights: the network's state dict.
    optimizer: the outer loop's state dict, None in `best.pth`.
    inner_lrs: (inner steps, parameter tensors) learned step sizes, None where the config does not learn them.
    transform: state dict of the learned gradient transform, None where the config has none.
    norms: of each normalisation's scale and shift the values per inner step, None where the config has none per step.
    averaged: what the outer loop learns, averaged along training, by parameter; only in `last.pth`, under `train.ema`.
    best_accuracy: percent, the highest validation accuracy so far.  metrics_bytes: size of `metrics.jsonl` then.
    temperature: what predictions divide the outputs by, see `maml_l2l.experiments.calibration`.
    earlier_classes: names of the classes that trained the network of `model.pretrained`, and those before it.
    """

    config: dict[str, dict[str, Any]]
    split: ClassSplit
    iteration: int
    validation_accuracy: float | None
    backbone: dict[str, Any]
    weights: dict[str, torch.Tensor]
    optimizer: dict[str, Any] | None
    inner_lrs: torch.Tensor | None = None
    transform: dict[str, torch.Tensor] | None = None
    norms: dict[str, torch.Tensor] | None = None
    averaged: dict[str, torch.Tensor] | None = None
    best_accuracy: float | None = None
    metrics_bytes: int = 0
    earlier_classes: tuple[str, ...] = ()
    temperature: float = 1.0

    @property
    def experiment(self) -> Experiment:
        """The validated configuration."""
        return parse_experiment(self.config, origin="the checkpoint's config")

    @property
    def tensors(self) -> dict[str, torch.Tensor]:
        """All that training has learned, by name: weights, and what the inner loop learns beside them."""
        transform = {f"transform.{name}": tensor for name, tensor in (self.transform or {}).items()}
        norms = {f"norms.{name}": tensor for name, tensor in (self.norms or {}).items()}
        return self.weights | transform | norms | ({} if self.inner_lrs is None else {"inner_lrs": self.inner_lrs})

    @property
    def training_classes(self) -> tuple[str, ...]:
        """Names of all classes that these weights were ever trained on, in order."""
        return tuple(sorted({*self.split["train"], *self.earlier_classes}))

    def check_ways(self, ways: int) -> None:
        """Raise `UserError` where the head has fewer outputs than a task of `ways` classes needs."""
        head, algorithm = self.backbone["ways"], self.experiment.algorithm
        if algorithm.head == "prototype" and algorithm.update in ("meta_sgd", "kronecker") and ways != head:
            raise UserError(
                f"the checkpoint's algorithm.update, {algorithm.update}, was learned for heads of {head} classes, so "
                f"it serves tasks of {head} classes, not of {ways}. Use {head} classes, or train with another update."
            )
        if ways > head and algorithm.head != "prototype":
            raise UserError(
                f"the checkpoint's head has {head} outputs, so it serves tasks of up to {head} classes, not of {ways}. "
                f"Use fewer classes, a network for any number (drawings, photos), or train with task.ways={ways}."
            )

    def serves(self, ways: int) -> bool:
        """Whether tasks of `ways` classes can be had; see `check_ways`."""
        try:
            self.check_ways(ways)
        except UserError:
            return False
        return True

    def learner(self, algorithm: Algorithm | None = None, device: torch.device | str = "cpu") -> MetaLearner:
        """The engine of `algorithm`, on `device`, with these weights, in evaluation mode.

        algorithm: None: that of the config, by the engine that is the faster one on `device`.
        """
        algorithm = algorithm or self.experiment.algorithm.by_any_engine()
        with torch.random.fork_rng(devices=[]):  # the fresh network's random weights are not kept
            learner = build_learner(algorithm, self.backbone, device=device)
        self.restore(learner)
        return learner.to(device).eval()

    def restore(self, learner: MetaLearner) -> None:
        """Give `learner`, which must be one of this config, these weights and step sizes."""
        learner.module.load_state_dict(self.weights)
        if self.inner_lrs is not None and learner.inner_lrs is not None:
            learner.inner_lrs.data.copy_(self.inner_lrs)
        if self.transform is not None and learner.transform is not None:
            learner.transform.load_state_dict(self.transform)
        if self.norms is not None and learner.norms is not None:
            for name, rows in learner.norms.named_rows().items():
                rows.data.copy_(self.norms[name])

    def start(self, learner: MetaLearner, backbone: dict[str, Any], split: ClassSplit, algorithm: Algorithm) -> None:
        """Give `learner`, the new one of a run with `backbone` and `split`, these weights and step sizes to start from.

        Of a head of more ways the first outputs are taken, as in evaluating fewer classes; for more ways than this
        checkpoint has, the head of `learner` stays as it is. Inner steps beyond those that this checkpoint has learned
        start from its last. Raises `UserError` where the networks differ in more than the ways, where step sizes were
        learned and the run, unless it takes no step, learns none, where the inner update is another, and where this
        checkpoint was trained on classes that the run validates or tests on.
        """
        mine, wanted = ({**arguments, "ways": None} for arguments in (self.backbone, backbone))
        seen = sorted(set(self.training_classes).intersection(split["val"] + split["test"]))
        update, problem = self.experiment.algorithm.update, None
        if mine != wanted:
            differing = [key for key in {**wanted, **mine} if mine.get(key) != wanted.get(key)]
            found, expected = (
                ", ".join(f"{key} {one[key]}" for key in differing if key in one) for one in (mine, wanted)
            )
            problem = f"is a network of {found}, and this run's is of {expected}. Give both the same"
        elif algorithm.inner_steps > 0 and self.inner_lrs is not None and learner.inner_lrs is None:
            problem = "has learned step sizes, and this run learns none. Set algorithm.learn_inner_lr=true"
        elif algorithm.inner_steps > 0 and self.transform is not None and update != algorithm.update:
            problem = f"has algorithm.update {update}, and this run {algorithm.update}. Give both the same"
        elif algorithm.inner_steps > 0 and self.norms is not None and learner.norms is None:
            problem = "has normalisations per step, and this run none. Set algorithm.norm_per_step=true"
        elif seen:
            problem = (
                f"was trained on {len(seen)} of the classes that validate or test this run, e.g. {shown(seen[0])}, "
                "so its accuracies would not be those of unseen classes. Split the data as they were for it"
            )
        if problem:
            raise UserError(f"the checkpoint of model.pretrained {problem}, or start from another checkpoint.")
        before_steps = {name: rows[0] for name, rows in (self.norms or {}).items()}
        _take(learner.module, self.weights | before_steps)
        if self.transform is not None and learner.transform is not None:
            _take(learner.transform, self.transform)
        if self.inner_lrs is not None and learner.inner_lrs is not None:
            _take_steps(learner.inner_lrs, self.inner_lrs)
        for name, rows in ({} if learner.norms is None else learner.norms.named_rows()).items():
            _take_steps(rows, self.weights[name][None] if self.norms is None else self.norms[name])


def _take_steps(values: torch.Tensor, found: torch.Tensor) -> None:
    """Give `values`, a row per inner step, the rows of `found`, of which the last goes on."""
    values.data.copy_(found[[min(step, len(found) - 1) for step in range(len(values))]])


def _take(module: torch.nn.Module, weights: dict[str, torch.Tensor]) -> None:
    """Give `module` those of `weights` that fit, of longer ones the beginning."""
    fresh = module.state_dict()
    cut = {name: weight[: len(fresh[name])] if weight.ndim else weight for name, weight in weights.items()}
    module.load_state_dict(fresh | {name: weight for name, weight in cut.items() if weight.shape == fresh[name].shape})


def save_checkpoint(checkpoint: Checkpoint, path: str | Path, previous: Path | None = None) -> None:
    """Write `checkpoint` to `path`, which holds a whole checkpoint or its old contents whatever interrupts this.

    previous: where the old contents are kept, see `write_atomically`. Raises `UserError`, before anything is written,
    where `load_checkpoint` would refuse it, and where `path` cannot be written.

    >>> import dataclasses, maml_l2l
    >>> checkpoint = maml_l2l.load_checkpoint("runs/glyphs/last.pth")
    >>> maml_l2l.save_checkpoint(dataclasses.replace(checkpoint, optimizer=None), "slim.pth")
    """
    path = user_path(path)
    checked = checked_contents(vars(checkpoint), Checkpoint, f"what should go to {path}", "Nothing was written.")
    content = {"format": FORMAT, "version": VERSION, **checked}

    def write(file: BinaryIO) -> None:
        save_torch_file(content, file)
        if file.tell() > MAX_BYTES:
            raise UserError(
                f"cannot write {path}: it would take {file.tell()} bytes, and checkpoints may have {MAX_BYTES}. "
                "Take a smaller network."
            )

    write_atomically(path, write, previous)


def load_checkpoint(path: str | Path) -> Checkpoint:
    """Read a checkpoint onto the CPU, without running code from it, and check everything that it holds.

    Raises `UserError` where `path` holds none, or one that does not fit together; see `checked_contents`.

    >>> import maml_l2l
    >>> checkpoint = maml_l2l.load_checkpoint("runs/glyphs/best.pth")
    >>> checkpoint.iteration, checkpoint.experiment.task.ways, len(checkpoint.split["test"])
    (4, 3, 26)
    >>> learner = checkpoint.learner()  # a LoopMAML or VectorizedMAML with these weights
    """
    try:
        content = load_torch_file(user_path(path), "checkpoint", MAX_BYTES)
    except UserError as error:
        raise UserError(f"{error} {_REMEDY}") from None
    if type(content) is not dict or content.pop("format", None) != FORMAT:
        raise UserError(f"{path} is not a checkpoint of maml_l2l. {_REMEDY}")
    version = content.pop("version", None)
    if type(version) is not int or version != VERSION:  # what a tensor is compared to may raise
        raise UserError(
            f"{path} has checkpoint version {shown(version)}, this maml_l2l reads version {VERSION}. Upgrade maml_l2l."
        )
    return Checkpoint(**checked_contents(content, Checkpoint, str(path), "Use another one."))


def load_pretrained(name_or_path: str | os.PathLike[str], weights: str | None = None) -> Checkpoint:
    """The published checkpoint of that name, e.g. `omniglot_5w1s`, or the one in that file; see `load_checkpoint`.

    The files come with the package. `photos`, `timm:NAME` and `torchvision:NAME` have none: they are networks that have
    learned from photographs, with a head of prototypes. Their library downloads the weights on first use, or they are
    read from the file `weights`, see `LibraryNetwork.take_weights`.
    Raises `UserError`, which lists the names, where there is no such checkpoint, and where weights cannot be had.

    >>> import maml_l2l
    >>> maml_l2l.load_pretrained("omniglot_5w1s").experiment.task.shots
    1
    """
    network = library_network(name_or_path)
    if network is not None:
        return _of_library(network, "default" if weights is None else weights)
    if weights is not None:
        raise UserError(
            f"model.weights is for {PHOTOS} and other networks of timm and torchvision, found {weights!r} for "
            f"{name_or_path}, which has its own. Leave it out."
        )
    return load_checkpoint(find_checkpoint(name_or_path if isinstance(name_or_path, str) else Path(name_or_path)))


def _of_library(name: str, weights: str) -> Checkpoint:
    """The network `name` of timm or torchvision as a checkpoint that nothing here has trained."""
    values = {"model": {"name": name, "weights": weights}, "data": {"name": "folder"}}
    experiment = parse_experiment(values, origin=name)
    backbone = backbone_arguments(experiment.model, experiment.task.ways, 3, experiment.data.image_size or 0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # for the head, which prototypes replace: equal in all processes
        network = build_backbone(backbone)
    if isinstance(network, LibraryNetwork) and weights != "none":
        network.take_weights(weights)
    unseen: ClassSplit = {part: [] for part in SPLITS}
    return Checkpoint(experiment.model_dump(), unseen, 0, None, backbone, network.state_dict(), None)
