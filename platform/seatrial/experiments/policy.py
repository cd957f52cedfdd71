"""The rules of one trial: `trial:` of a service, taken when the trial opened."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

MetricType = Literal["proportion", "mean", "ratio", "count", "quantile"]
BoundaryName = Literal["pocock", "obrien_fleming", "lan_demets_pocock", "lan_demets_obrien_fleming"]

BUILT_IN = frozenset(
    {
        "requests",
        "errors",
        "unanswered",
        "refusals",
        "latency_s",
        "ttft_s",
        "prompt_tokens",
        "completion_tokens",
        "cost",
    }
)
"""What every request says by itself; every other name is an outcome's."""


@dataclass(frozen=True)
class MetricPolicy:
    """How a unit's value is made, and which way it should go."""

    name: str
    type: MetricType = "proportion"
    higher_is_better: bool = True
    missing_counts_zero: bool = True
    cap: float | None = None
    denominator: str | None = None
    quantile: float | None = None
    covariate_h: float | None = None

    @classmethod
    def from_json(cls, section: Mapping[str, Any]) -> MetricPolicy:
        """The metric from a `MetricSection` as JSON, of this version or an older one."""
        return cls(
            name=section["name"],
            type=section["type"],
            higher_is_better=section["higher_is_better"],
            missing_counts_zero=section["missing"] == "zero",
            cap=section.get("cap"),
            denominator=section.get("denominator"),
            quantile=section.get("quantile") if section["type"] == "quantile" else None,
            covariate_h=section.get("covariate_h"),
        )


@dataclass(frozen=True)
class GuardrailPolicy:
    """What a challenger's metric must keep within: an absolute ``limit``, or a ``margin`` to the champion."""

    name: str
    metric: MetricPolicy
    limit: float | None = None
    margin: float | None = None
    alpha: float = 0.05

    @classmethod
    def from_json(cls, section: Mapping[str, Any]) -> GuardrailPolicy:
        """The guardrail from a `GuardrailSection` as JSON."""
        metric = MetricPolicy.from_json(section["metric"])
        return cls(metric.name, metric, section["limit"], section["margin"], section["alpha"])


@dataclass(frozen=True)
class Sequential:
    """Look whenever you like."""


@dataclass(frozen=True)
class GroupSequential:
    """``looks`` planned looks, the last at ``units`` exposed units of all arms."""

    boundary: BoundaryName
    looks: int
    units: int


@dataclass(frozen=True)
class Thompson:
    """Weights follow the probability of being best. ``floor`` is the least share, ``step`` the least move.

    At the deadline a challenger is promoted whose probability is at least ``promote_at``, none without it.
    """

    floor: float
    step: float
    promote_at: float | None = None


DecisionPolicy = Sequential | GroupSequential | Thompson

INTERVALS: Mapping[type[DecisionPolicy], str] = {
    Sequential: "confidence sequence",
    GroupSequential: "repeated confidence interval",
    Thompson: "interval, which moving shares may make too narrow",
}
"""Valid at all looks; valid at all planned looks; no promise, as its shares follow the values seen."""


@dataclass(frozen=True)
class TrialPolicy:
    """The rules of one trial."""

    metric: MetricPolicy
    alpha: float
    minimum_units: int
    tuning_units: int
    sample_ratio_alpha: float
    deadline_s: float
    minimum_duration_s: float
    max_error_share: float
    guardrail_alpha: float
    guardrails: tuple[GuardrailPolicy, ...] = ()
    decision: DecisionPolicy = Sequential()
    ramp: tuple[float, ...] = ()
    ramp_hold_s: float = 0.0
    attribution_s: float | None = None
    prices: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def from_json(cls, section: Mapping[str, Any]) -> TrialPolicy:
        """The policy from a `TrialSection` as JSON, also from one that an older version has stored."""
        ramp, attribution_h = section.get("ramp") or {}, section.get("attribution_h")
        return cls(
            metric=MetricPolicy.from_json(section["metric"]),
            alpha=section["alpha"],
            minimum_units=section["minimum_units"],
            tuning_units=section["tuning_units"] or section["minimum_units"],
            sample_ratio_alpha=section["sample_ratio_alpha"],
            deadline_s=section["deadline_h"] * 3600,
            minimum_duration_s=section["minimum_duration_s"],
            max_error_share=section["max_error_share"],
            guardrail_alpha=section["guardrail_alpha"],
            guardrails=tuple(map(GuardrailPolicy.from_json, section.get("guardrails") or ())),
            decision=_decision(section.get("decision") or {"type": "sequential"}),
            ramp=tuple(ramp.get("steps") or ()),
            ramp_hold_s=ramp.get("hold_s", 0.0),
            attribution_s=None if attribution_h is None else attribution_h * 3600,
            prices=dict(section.get("prices") or {}),
        )

    @property
    def ratio_alpha(self) -> float:
        """Alpha of each of the two tests of the sample ratio."""
        return self.sample_ratio_alpha / 2

    def shared_alpha(self, challengers: int) -> float:
        """Alpha of each comparison with the champion, of so many that the trial began with (Bonferroni)."""
        return self.alpha / challengers

    def interval(self, challengers: int) -> str:
        """What the interval of each challenger's difference is, such as `97.5% confidence sequence`."""
        return f"{100 * (1 - self.shared_alpha(challengers)):.4g}% {INTERVALS[type(self.decision)]}"

    @property
    def metrics(self) -> tuple[MetricPolicy, ...]:
        """Everything that evidence must be read for: what decides, then the guardrails', each name once."""
        found = {self.metric.name: self.metric}
        for guardrail in self.guardrails:
            found.setdefault(guardrail.name, guardrail.metric)
        return tuple(found.values())


def _decision(section: Mapping[str, Any]) -> DecisionPolicy:
    if section["type"] == "group_sequential":
        return GroupSequential(section["boundary"], section["looks"], section["units"])
    if section["type"] == "thompson":
        return Thompson(section["floor"], section["step"], section["promote_at"])
    return Sequential()
