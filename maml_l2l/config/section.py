"""What the sections of a config have in common."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from maml_l2l.config.problems import checked_path

PathText = Annotated[str, AfterValidator(checked_path)]
Rate = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Tasks = Annotated[int, Field(ge=1, le=1_000_000)]  # these, so that no file asks for work without end
Count = Annotated[int, Field(ge=1, lt=2**63)]


class Section(BaseModel):
    """Frozen; unknown keys and values of another type are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)
