"""How weights are changed.

A package outside Seatrial adds a method of its own: its section through the entry point group
:data:`GROUP`, under the name that recipes give as `type`, and its code through `seatrial.methods`.
"""

from __future__ import annotations

import logging
import operator
from collections.abc import Iterable
from functools import reduce
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

from pydantic import Field, create_model, model_validator

from seatrial.config.section import PositiveInt, Section, wrong

log = logging.getLogger(__name__)

GROUP = "seatrial.method_sections"


class FullMethod(Section):
    """Every weight is trained."""

    type: Literal["full"]
    """Selects this method."""


class LoraMethod(Section):
    """Low-rank adapters beside frozen weights (Hu et al. 2021, arXiv:2106.09685)."""

    type: Literal["lora"]
    """Selects this method."""
    rank: PositiveInt = 16
    """Rank r of the update B·A."""
    alpha: Annotated[float, Field(gt=0)] = 32.0
    """The update is scaled by alpha / rank."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Dropout before A while training."""
    targets: tuple[str, ...] | Literal["all-linear"] = "all-linear"
    """Names of the layers that get adapters."""


OWN: dict[str, type[Section]] = {"full": FullMethod, "lora": LoraMethod}


class BrokenMethod(Section, extra="allow"):
    """A method whose package cannot be read: only a recipe that names it is refused."""

    type: str
    """Selects this method."""

    @model_validator(mode="after")
    def _refuse(self) -> BrokenMethod:
        reason = type(self).__doc__ or ""
        raise wrong("type", self.type, reason)


def sections(points: Iterable[EntryPoint]) -> dict[str, type[Section]]:
    """Every method's section by its name: Seatrial's own and those of ``points``."""
    found = dict(OWN)
    for point in sorted(points, key=lambda point: (point.name, point.value)):
        if point.name in OWN:
            log.warning("%s: %s: the name is taken by Seatrial's own method", GROUP, _named(point))
        elif point.name in found:
            found[point.name] = _broken(point, "two packages give this method: remove one of them")
        else:
            found[point.name] = _read(point)
    return found


def _read(point: EntryPoint) -> type[Section]:
    try:
        section = point.load()
    except Exception as error:  # whatever a foreign module does when it is imported
        reason = (str(error).strip().splitlines() or [""])[0]
        return _broken(point, f"cannot be imported ({type(error).__name__}: {reason}): reinstall it")
    if not (isinstance(section, type) and issubclass(section, Section)):
        return _broken(point, "is no subclass of seatrial.config.section.Section: ask its author")
    tag = section.model_fields.get("type")
    if getattr(tag and tag.annotation, "__args__", ()) != (point.name,):
        return _broken(point, f"has no field `type: Literal[{point.name!r}]`: ask its author")
    return section


def _broken(point: EntryPoint, problem: str) -> type[Section]:
    made: type[Section] = create_model(
        "BrokenMethod",
        __base__=BrokenMethod,
        __doc__=f"{_named(point)}: {problem}",
        type=(cast(Any, Literal[point.name]), ...),
    )
    return made


def _named(point: EntryPoint) -> str:
    package = point.dist.name if point.dist else "an unknown package"
    return f"{point.name} = {point.value} of {package}"


if TYPE_CHECKING:
    Method = Annotated[FullMethod | LoraMethod, Field(discriminator="type")]
else:
    SECTIONS: dict[str, Any] = sections(entry_points(group=GROUP))
    Method = Annotated[reduce(operator.or_, SECTIONS.values()), Field(discriminator="type")]
