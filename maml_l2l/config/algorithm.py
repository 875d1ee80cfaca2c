"""The keys of `algorithm`: the member of the MAML family, and which of its pieces go together."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from maml_l2l.config.section import Count, Rate, Section, Tasks


class Algorithm(Section):
    """How the inner loop adapts, and how the outer loop gets its gradient."""

    gradient: Literal["second", "first", "implicit", "reptile", "finite_difference"] = Field(
        "second",
        description="the meta-gradient: exact (`second`), of first-order MAML (`first`), of iMAML (`implicit`), of "
        "Reptile, or with Hessian products by `finite_difference`; `algorithm.order` is its older name",
    )
    engine: Literal["auto", "vectorized", "loop"] = Field(
        "auto",
        description="`vectorized`: many tasks at once; `loop`: learn2learn's, one task after another; `auto`: the "
        "faster one, see docs/engines.md",
    )
    task_chunk: Tasks | None = Field(
        None, description="vectorized: tasks worked on at once, which bounds the memory; unset: by their size"
    )
    inner_lr: Rate = Field(0.4, description="step size of the inner loop, on the mean cross-entropy")
    learn_inner_lr: bool = Field(
        False, description="meta-learn a step size for each parameter tensor and inner step, starting from `inner_lr`"
    )
    update: Literal["sgd", "lslr", "meta_sgd", "meta_curvature", "kronecker"] = Field(
        "sgd",
        description="learned transform of the inner gradients: none (`sgd`; `lslr`: with `learn_inner_lr`), a factor "
        "per weight, matrices along the modes of a tensor, or Kronecker factors",
    )
    adapt: Literal["all", "head", "body"] | list[str] = Field(
        "all", description="parameters that the inner loop adapts: `all`, `head`, `body`, or a list of name patterns"
    )
    head: Literal["learned", "prototype"] = Field(
        "learned",
        description="the linear head starts as it was `learned`, or as each task's class prototypes, for any ways",
    )
    inner_steps: int = Field(
        1, ge=0, le=1000, description="gradient steps of the inner loop in training; 0: prototypes alone"
    )
    norm_per_step: bool = Field(
        False, description="meta-learn scale and shift of each normalisation per inner step; none of them adapts"
    )
    multi_step_loss: Count | None = Field(
        None,
        description="meta-iterations in which the query loss after every inner step counts, fading to that after the "
        "last; unset: the last alone",
    )
    second_order_from: Count | None = Field(
        None, description="meta-iterations of first order before the second; unset: none"
    )
    proximal: Rate = Field(2.0, description="implicit: strength of the pull towards the initial weights")
    cg_steps: int = Field(5, ge=1, le=1000, description="implicit: steps of conjugate gradients")
    recompute: Literal["sqrt"] | None = Field(
        None,
        description="vectorized: keep the weights of every `sqrt`(steps)-th inner step only, and recompute the rest",
    )
    normalisation: Literal["batch", "support"] = Field(
        "batch", description="normalise queries by their own `batch`, or inductively by the task's `support` images"
    )

    def by_any_engine(self) -> Algorithm:
        """This, by whichever engine is faster where it runs: what both do is the same."""
        return self.model_copy(update={"engine": "auto"}) if self.engine == "vectorized" else self

    @model_validator(mode="before")
    @classmethod
    def _other_names(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        if "order" in values:
            if "gradient" in values:
                raise ValueError("`algorithm.order` is the older name of `algorithm.gradient`: give one of them")
            values = {"gradient" if key == "order" else key: value for key, value in values.items()}
        return values | {"learn_inner_lr": True} if values.get("update") == "lslr" else values

    @model_validator(mode="after")
    def _the_keys_fit_together(self) -> Algorithm:
        if unused := self._unused():
            key, found = unused[0]
            raise ValueError(
                f"`algorithm.gradient: {self.gradient}` has no use for `algorithm.{key}`: leave it out, found {found}"
            )
        if self.engine == "loop" and self.gradient not in ("second", "first"):
            raise ValueError(
                f"`algorithm.gradient: {self.gradient}` is for `algorithm.engine: vectorized`, found engine `loop`"
            )
        if self.multi_step_loss is not None and self.inner_steps < 2:
            raise ValueError(
                f"`algorithm.multi_step_loss` is for 2 inner steps or more, found `inner_steps` {self.inner_steps}"
            )
        if self.inner_steps == 0 and self.head == "learned":
            raise ValueError(
                "`algorithm.inner_steps` should be at least 1, found 0: with no step only `algorithm.head: prototype` "
                "learns of a task"
            )
        return self

    def _unused(self) -> list[tuple[str, Any]]:
        """Keys that are set, and that `gradient` has no use for, with their values."""
        unused: list[str] = [] if self.gradient == "second" else ["second_order_from"]
        if self.gradient in ("implicit", "reptile"):
            unused += ["update", "learn_inner_lr", "norm_per_step", "multi_step_loss", "recompute"]
        if self.gradient == "reptile":
            unused += ["adapt", "head"]
        if self.gradient != "implicit":
            unused += ["proximal", "cg_steps"]
        fields = type(self).model_fields
        return [(key, getattr(self, key)) for key in unused if getattr(self, key) != fields[key].default]
