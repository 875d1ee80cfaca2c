"""What the page may ask, checked: types, counts and sizes."""

from __future__ import annotations

from typing import Annotated, TypeVar

from pydantic import Base64Bytes, BaseModel, ConfigDict, Field, ValidationError

from maml_l2l.page.pictures import MOST_PICTURES
from maml_l2l.system.errors import UserError, printable

MOST_CLASSES, MOST_QUERIES = 50, 50
_MOST_BYTES = 2**21  # of a picture file: noise of `pictures.SIDE` pixels takes less, in base64, too

_Pictures = Annotated[list[Annotated[Base64Bytes, Field(max_length=_MOST_BYTES)]], Field(max_length=MOST_PICTURES)]
_AsksT = TypeVar("_AsksT", bound=BaseModel)


class Question(BaseModel):
    """What are the `queries`, after learning the `support` pictures of each class? network: its name on the page."""

    model_config = ConfigDict(extra="forbid")
    network: str
    support: Annotated[list[_Pictures], Field(min_length=2, max_length=MOST_CLASSES)]
    queries: Annotated[_Pictures, Field(max_length=MOST_QUERIES)]


class NamedClass(BaseModel):
    """A class of a support set that is to be kept."""

    model_config = ConfigDict(extra="forbid")
    name: Annotated[str, Field(min_length=1, max_length=200)]
    pictures: _Pictures


class SupportSet(BaseModel):
    """A support set that is to be kept."""

    model_config = ConfigDict(extra="forbid")
    classes: Annotated[list[NamedClass], Field(min_length=1, max_length=MOST_CLASSES)]


def parsed(kind: type[_AsksT], content: bytes) -> _AsksT:
    """`content`, which should be the JSON of a `kind`. Raises `UserError`, which says in one sentence what is not."""
    try:
        return kind.model_validate_json(content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise UserError(printable(f"{place or 'the request'}: {first['msg']}."[:300])) from None
