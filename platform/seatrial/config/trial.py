"""How two versions are compared."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from seatrial.config.section import PositiveInt, Section, Share


class MetricSection(Section):
    """The number that decides."""

    name: str = Field(default="resolved", pattern=r"^[a-z][a-z0-9_]{0,62}$")
    """Metric of the outcomes, such as `click`, `thumbs` or `resolved`."""
    type: Literal["proportion", "mean"] = "proportion"
    """`proportion`: each unit counts between 0 and 1; `mean`: any number."""
    higher_is_better: bool = True
    """Whether a larger value is the better one."""
    missing: Literal["zero", "exclude"] = "zero"
    """What an exposed request without an outcome counts as."""


class TrialSection(Section):
    """The policy of every trial that a service opens."""

    metric: MetricSection = MetricSection()
    """What decides."""
    challenger_share: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """Share of the units in the trial that see the challenger."""
    coverage: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Share of all units that take part; the others see the champion and are not counted."""
    alpha: Annotated[float, Field(gt=0, lt=0.5)] = 0.05
    """Probability that the metric decides wrongly, over the whole life of the trial and all looks."""
    minimum_units: PositiveInt = 200
    """Exposed units, over both arms, before the metric may decide."""
    tuning_units: PositiveInt | None = None
    """Units at which the confidence sequence is tightest; `minimum_units` when not given."""
    sample_ratio_alpha: Annotated[float, Field(gt=0, lt=0.5)] = 0.001
    """Below this p-value of the sample-ratio test the trial is invalid."""
    deadline_h: Annotated[float, Field(gt=0)] = 336.0
    """Hours after which an undecided trial ends as inconclusive."""
    minimum_duration_s: Annotated[float, Field(ge=0)] = 0.0
    """Seconds before the metric may decide, so that a whole day or week is covered."""
    max_error_share: Share = 0.1
    """Guardrail: share of a unit's requests that the challenger may leave unanswered, mean over its units."""
    guardrail_alpha: Annotated[float, Field(gt=0, lt=0.5)] = 0.05
    """Probability that the guardrail rolls back a challenger that keeps within it, over all looks."""
