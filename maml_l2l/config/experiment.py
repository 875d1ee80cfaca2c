"""Every key of a config, with its type, its default and its meaning, as one frozen, validated value."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from maml_l2l.config.algorithm import Algorithm
from maml_l2l.config.model import Model, with_library_defaults
from maml_l2l.config.section import Count, PathText, Rate, Section, Tasks
from maml_l2l.system.image_models import is_library_name
from maml_l2l.system.run_files import MAX_KEPT

MAX_WAYS = 10_000  # so that no number in a file makes a network that no machine holds
Side = Annotated[int, Field(ge=1, le=1024)]

# What is unset: for omniglot and glyphs, which are drawings, and for a folder of pictures.
_DRAWINGS = {"image_size": 28, "channels": 1, "rotate": True}
_PICTURES = {"image_size": 84, "channels": 3, "rotate": False}
_SIZES = ("image_size", "channels")


class Data(Section):
    name: Literal["omniglot", "glyphs", "drawings", "folder"] = Field(
        "omniglot",
        description="`omniglot` (downloaded when absent), `glyphs` (embedded, drawn on first use), `drawings` (both, "
        "the glyphs for training) or `folder` (pictures of your own, in a folder for each class)",
    )
    root: PathText = Field("data", description="folder that holds the data set, or will")
    source: PathText | None = Field(None, description="omniglot: another base address, or a folder of both archives")
    verify: bool = Field(True, description="omniglot: refuse archives whose MD5 sum is not the original's")
    split: Literal["finn", "alphabets"] = Field(
        "finn",
        description="drawings: `finn`: 1,100 / 100 / 423 of 1,623 characters; `alphabets`: unseen alphabets test",
    )
    ink: Literal["finn", "normalised"] = Field(
        "finn",
        description="drawings: `finn`: dark on light, as Finn et al. (2017) read Omniglot; `normalised`: any ink on "
        "any paper, of one size and one pen width; folder: `normalised` reads pictures as such drawings, 28x28, grey",
    )
    alphabets: int = Field(50, ge=3, le=50, description="glyphs: number of alphabets; 50 hold 1,623 characters")
    rotate: bool | None = Field(
        None, description="rotate each class of a task by a random multiple of 90 degrees; unset: except for folder"
    )
    image_size: Side | None = Field(
        None, description="folder: side of the square that pictures become, in pixels; unset: 84 (drawings: 28)"
    )
    channels: Literal[1, 3] | None = Field(None, description="folder: 1 (grey) or 3 (colour); unset: 3 (drawings: 1)")
    fit: Literal["crop", "pad"] = Field(
        "crop", description="folder: make pictures square by a centre crop, or by white margins"
    )
    invert: bool = Field(False, description="folder: turn dark ink on light paper into ink = 1, paper = 0")
    val_fraction: float = Field(0.2, gt=0, lt=1, description="folder: share of the classes that validates")
    test_fraction: float = Field(0.2, ge=0, lt=1, description="folder: share of the classes that tests")
    split_seed: int = Field(0, ge=-(2**63), lt=2**63, description="folder: seed of the class split")
    max_memory: Count = Field(4096, description="folder: MiB of images held in memory; more are read from the disk")
    drop_small_classes: bool = Field(
        False, description="leave out classes with fewer pictures than shots + queries, instead of refusing them"
    )
    skip_damaged: bool = Field(
        False, description="folder: leave out files that cannot be read as pictures, instead of refusing them"
    )

    @property
    def holds_drawings(self) -> bool:
        """Whether what the network sees is ink = 1 on paper = 0 for sure, 28x28."""
        return self.name != "folder" or self.ink == "normalised"

    @model_validator(mode="before")
    @classmethod
    def _unset_keys_get_the_values_of_the_data_set(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        usual = _PICTURES if values.get("name") == "folder" else _DRAWINGS
        if values.get("ink") == "normalised":
            usual = usual | {key: _DRAWINGS[key] for key in _SIZES}
        return values | {key: value for key, value in usual.items() if values.get(key) is None}

    @model_validator(mode="after")
    def _the_keys_fit_together(self) -> Data:
        for key in _SIZES:
            found = getattr(self, key)
            if self.holds_drawings and found != _DRAWINGS[key]:
                what = "`data.ink: normalised`" if self.name == "folder" else f"`data.name: {self.name}`"
                raise ValueError(f"`data.{key}` is {_DRAWINGS[key]} for {what}, found {found}")
        if self.name == "drawings" and self.split != "alphabets":
            raise ValueError(f"`data.split` is alphabets for `data.name: drawings`, found {self.split}")
        if self.name == "folder" and self.ink == "normalised":
            for key, usual in (("invert", False), ("fit", "crop")):
                if getattr(self, key) != usual:
                    raise ValueError(
                        f"`data.{key}` has no effect with `data.ink: normalised`, which finds the ink: leave it out, "
                        f"found {getattr(self, key)}"
                    )
        if self.val_fraction + self.test_fraction >= 1:
            raise ValueError(
                f"`data.val_fraction` + `data.test_fraction` should be less than 1, so that classes are left to train, "
                f"found {self.val_fraction} + {self.test_fraction}"
            )
        return self


class Task(Section):
    ways: int = Field(5, ge=2, le=MAX_WAYS, description="classes a task")
    shots: int = Field(1, ge=1, le=MAX_WAYS, description="support images a class")
    queries: int = Field(1, ge=1, le=MAX_WAYS, description="query images a class")


class Train(Section):
    iterations: Count = Field(60_000, description="meta-iterations")
    meta_batch: Tasks = Field(32, description="tasks a meta-iteration")
    meta_lr: Rate = Field(1e-3, description="learning rate of the outer loop's Adam")
    schedule: Literal["constant", "cosine"] = Field(
        "constant", description="outer learning rate: `constant`, or `cosine` decay to zero over all meta-iterations"
    )
    shift: int = Field(0, ge=0, description="move each training image at random, by up to so many pixels each way")
    augment: float = Field(
        0.0,
        ge=0,
        le=2,
        description="drawings: change each training image as another hand and pen would: 1 turns by up to 15 degrees, "
        "shears by 0.2, scales by 20 %, moves by 2 pixels, changes pen width, blur and contrast; 0.5: by half of it",
    )
    validate_every: Count = Field(500, description="meta-iterations between validations")
    validate_tasks: int = Field(200, ge=2, le=1_000_000, description="tasks of the fixed validation set")
    max_grad_norm: Rate | None = Field(None, description="clip the meta-gradient to this norm; unset: not at all")
    checkpoint_every: Count = Field(500, description="meta-iterations between writings of `last.pth`")
    keep_best: int = Field(
        1, ge=1, le=MAX_KEPT, description="validations whose networks are kept: `best.pth`, `best_2.pth`, ..."
    )
    ema: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="decay of an exponential moving average of the weights, which validates and is the best "
        "checkpoint, e.g. 0.999; unset: none",
    )


class Eval(Section):
    tasks: int = Field(1000, ge=2, le=1_000_000, description="tasks of an evaluation")
    steps: int = Field(10, ge=0, le=1000, description="accuracy is reported after 0, 1, ..., `steps` inner steps")


class Run(Section):
    seed: int = Field(0, ge=0, lt=2**63, description="seed of the initial weights and of the task streams")
    device: str = Field(
        "auto",
        pattern=r"^(auto|cpu|mps|cuda(:(0|[1-9][0-9]?))?)$",
        description="`auto` (CUDA where there is a GPU, else `cpu`), `cpu`, `cuda`, `cuda:1`, ..., `mps` (untested)",
    )
    threads: int | None = Field(None, ge=1, le=1024, description="CPU threads of PyTorch; unset: PyTorch's own choice")
    workers: int | None = Field(
        None, ge=0, le=1024, description="processes that draw training tasks ahead; unset: up to 8 with a GPU, else 0"
    )
    compile: bool | Literal["auto"] = Field(
        "auto",
        description="compile the vectorized engine: true, false, or `auto`: trainings of 500 meta-iterations or more, "
        "and long evaluations",
    )
    precision: Literal["float32", "tf32", "bfloat16", "auto"] = Field(
        "float32",
        description="round what is multiplied to `tf32` (GPUs) or `bfloat16` (convolutions; for some CPUs); `auto`: to "
        "`bfloat16` where it was measured to be as good, see docs/engines.md",
    )
    tensorboard: bool = Field(False, description="write TensorBoard event files (`pip install tensorboard`)")


class Experiment(Section):
    """Everything that defines a run; unknown keys are refused."""

    data: Data = Data()
    task: Task = Task()
    model: Model = Model()
    algorithm: Algorithm = Algorithm()
    train: Train = Train()
    eval: Eval = Eval()
    run: Run = Run()

    @model_validator(mode="before")
    @classmethod
    def _empty_section_means_defaults(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        return with_library_defaults({key: {} if value is None else value for key, value in values.items()})

    @model_validator(mode="after")
    def _the_sections_fit_together(self) -> Experiment:
        if self.data.image_size is not None and self.train.shift >= self.data.image_size:
            raise ValueError(
                f"`train.shift` should be less than `data.image_size`, {self.data.image_size}, found {self.train.shift}"
            )
        if is_library_name(self.model.name) and self.data.channels != 3:
            raise ValueError(
                f"`model.name: {self.model.name}` sees colour pictures: `data.name` should be folder and "
                f"`data.channels` 3, found {self.data.name} and {self.data.channels}"
            )
        if self.train.augment and not (self.data.holds_drawings or self.data.invert):
            raise ValueError(
                "`train.augment` is for drawings: omniglot, glyphs, or a folder with `data.ink: normalised` or "
                f"`data.invert: true`, found {self.train.augment} for `data.name: folder`"
            )
        if self.algorithm.engine == "loop":
            found = self.run.compile is True, self.run.precision == "bfloat16", self.algorithm.recompute is not None
            for key, wrong in zip(("run.compile", "run.precision", "algorithm.recompute"), found, strict=True):
                if wrong:
                    raise ValueError(f"`{key}` is for `algorithm.engine: vectorized`, found engine `loop`")
        if self.run.precision == "bfloat16" and self.model.name != "conv4":
            raise ValueError(f"`run.precision: bfloat16` is for `model.name: conv4`, found `{self.model.name}`")
        return self
