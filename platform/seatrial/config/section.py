"""What every configuration section has in common."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field
from pydantic_core import PydanticCustomError

# Names end up in URLs, file names and metric labels, so they are kept to what all of those allow.
Slug = Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$")]
PositiveInt = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0.0, le=1.0)]


class Section(BaseModel):
    """A frozen group of fields; unknown names are refused, and so are numbers that are none."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)


def wrong(field: str, value: object, fix: str) -> PydanticCustomError:
    """The error of a rule over several fields, told of ``field``: its dotted name below the section."""
    return PydanticCustomError("rule", "{fix}", {"field": field, "value": value, "fix": fix})
