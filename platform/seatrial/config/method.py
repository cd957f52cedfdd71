"""How weights are changed."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from seatrial.config.section import PositiveInt, Section


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


Method = Annotated[FullMethod | LoraMethod, Field(discriminator="type")]
