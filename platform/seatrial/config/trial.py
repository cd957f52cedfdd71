"""How versions are compared."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from seatrial.config.section import PositiveInt, Section, Share, Slug, wrong

MetricName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,62}$")]
Inner = Annotated[float, Field(gt=0, lt=1)]
Alpha = Annotated[float, Field(gt=0, lt=0.5)]
# What the hash of users tells apart, see `seatrial.experiments.assignment`.
ONE_BUCKET = 1e-4
SHARES = ("errors", "unanswered", "refusals")
MEASURES = (
    *SHARES,
    "requests",
    "latency_s",
    "ttft_s",
    "prompt_tokens",
    "completion_tokens",
    "cost",
)
"""What every request says by itself; of all of them less is better."""


class MetricSection(Section):
    """A number of each unit.

    What every request says by itself: requests, errors, unanswered, refusals, latency_s, ttft_s,
    prompt_tokens, completion_tokens, cost. Any other name is an outcome's.
    """

    name: MetricName = "resolved"
    """Metric of the outcomes, such as `click`, `thumbs` or `resolved`, or what requests say by themselves."""
    type: Literal["proportion", "mean", "ratio", "count", "quantile"] = "proportion"
    """`proportion`: each unit counts between 0 and 1; `mean`: any number; `count`: a unit's total; `ratio`: all units' total over that of `denominator`; `quantile`: of the units' means."""  # noqa: E501
    higher_is_better: bool = True
    """Whether a larger value is the better one; false by default for what requests say by themselves."""
    missing: Literal["zero", "exclude"] = "zero"
    """What an exposed request without an outcome counts as."""
    cap: Annotated[float, Field(gt=0)] | None = None
    """Largest value of a unit; what is above counts as this (winsorising)."""
    denominator: MetricName | None = None
    """Of a `ratio`: what is divided by, `requests` for example."""
    quantile: Inner = 0.95
    """Of a `quantile`: which one."""
    covariate_h: Annotated[float, Field(gt=0)] | None = None
    """Hours before the trial whose values of the same metric narrow the interval (CUPED)."""

    @model_validator(mode="before")
    @classmethod
    def _less_is_better(cls, value: Any) -> Any:
        if isinstance(value, dict) and value.get("name") in MEASURES:
            return {"higher_is_better": False, **value}
        return value

    @model_validator(mode="after")
    def _fits_its_type(self) -> MetricSection:
        if (self.type == "ratio") != (self.denominator is not None):
            raise wrong("denominator", self.denominator, "give it to a `ratio`, and only to a `ratio`")
        if self.covariate_h is not None and self.type not in ("proportion", "mean", "count"):
            raise wrong("covariate_h", self.covariate_h, "give it to a proportion, a mean or a count")
        if self.type == "proportion" and self.name in MEASURES and self.name not in SHARES:
            raise wrong("type", self.type, f"{self.name} is no share: give `mean`, `count` or `quantile`")
        return self


class GuardrailSection(Section):
    """What every challenger must keep within; one that does not is rolled back at any look."""

    metric: MetricSection
    """What is watched."""
    limit: float | None = None
    """Largest value that is let pass, or the smallest where higher is better."""
    margin: Annotated[float, Field(ge=0)] | None = None
    """How much worse than the champion's, relative to it: 0.1 is 10 %."""
    alpha: Alpha = 0.05
    """Probability that a challenger that keeps within it is rolled back, over all looks."""

    @model_validator(mode="after")
    def _one_bound(self) -> GuardrailSection:
        if (self.limit is None) == (self.margin is None):
            raise wrong("limit", self.limit, "give either `limit` or `margin`")
        return self


class SequentialSection(Section):
    """Look whenever you like: an anytime-valid confidence sequence."""

    type: Literal["sequential"] = "sequential"
    """`sequential`."""


class GroupSequentialSection(Section):
    """Planned looks: shorter intervals, and no decision between the looks."""

    type: Literal["group_sequential"]
    """`group_sequential`."""
    boundary: Literal["pocock", "obrien_fleming", "lan_demets_pocock", "lan_demets_obrien_fleming"] = (
        "lan_demets_obrien_fleming"
    )
    """How alpha is shared out over the looks."""
    looks: Annotated[int, Field(ge=1, le=50)] = 5
    """Planned looks, evenly over `units`."""
    units: PositiveInt
    """Exposed units of all arms at the last look; `seatrial power` computes them."""


class ThompsonSection(Section):
    """Reward rather than proof: traffic follows the probability of being best (Thompson sampling)."""

    type: Literal["thompson"]
    """`thompson`."""
    floor: Annotated[float, Field(gt=0, lt=0.5)] = 0.05
    """Least share of each arm."""
    step: Inner = 0.05
    """Change of some arm's share below which nothing is changed."""
    promote_at: Annotated[float, Field(gt=0.5, lt=1)] | None = None
    """Probability of being best that promotes a challenger at the deadline; without it none is."""


Decision = Annotated[
    SequentialSection | GroupSequentialSection | ThompsonSection, Field(discriminator="type")
]


class RampSection(Section):
    """Traffic that grows step by step."""

    steps: tuple[Inner, ...] = ()
    """Challengers' share of all traffic at each step, such as 0.01, 0.05, 0.25, 0.5."""
    hold_s: Annotated[float, Field(ge=0)] = 3600.0
    """Seconds at each step."""

    @model_validator(mode="after")
    def _grows(self) -> RampSection:
        if list(self.steps) != sorted(set(self.steps)):
            raise wrong("steps", self.steps, "give growing shares")
        if self.steps and self.steps[0] < ONE_BUCKET:
            raise wrong("steps", self.steps[0], f"give at least {ONE_BUCKET:g}: less is nobody's share")
        return self


class NamespaceSection(Section):
    """Trials that exclude each other: services that share users give parts that do not overlap."""

    name: Slug
    """Name of the namespace."""
    start: Annotated[float, Field(ge=0, lt=1)]
    """Where this service's part begins."""
    end: Annotated[float, Field(gt=0, le=1)]
    """Where it ends."""

    @model_validator(mode="after")
    def _is_a_part(self) -> NamespaceSection:
        if self.start >= self.end:
            raise wrong("end", self.end, "give an end above `start`")
        return self


class PriceSection(Section):
    """Price of a million tokens, in any currency."""

    prompt: Annotated[float, Field(ge=0)]
    """Of the prompts."""
    completion: Annotated[float, Field(ge=0)]
    """Of the answers."""


class TrialSection(Section):
    """The policy of every trial that a service opens."""

    metric: MetricSection = MetricSection()
    """What decides."""
    guardrails: tuple[GuardrailSection, ...] = ()
    """What must not get worse meanwhile."""
    decision: Decision = SequentialSection()
    """How looks become a verdict."""
    challenger_share: Inner = 0.5
    """Share of the units in the trial that see a challenger; several share it evenly."""
    coverage: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Share of all units that take part; the others see the champion and are not counted."""
    ramp: RampSection | None = None
    """Steps by which the coverage grows; without them the trial begins with all of it."""
    holdout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of units that no trial touches, the same units for every service."""
    namespace: NamespaceSection | None = None
    """Which users may take part, where several services share them."""
    alpha: Alpha = 0.05
    """Probability that the metric decides wrongly, over the whole life of the trial and all looks."""
    minimum_units: PositiveInt = 200
    """Exposed units, over all arms, before the metric may decide."""
    tuning_units: PositiveInt | None = None
    """Units at which the confidence sequence is tightest; `minimum_units` when not given."""
    sample_ratio_alpha: Alpha = 0.001
    """Alpha of the sample ratio, half of it for all units and half for those that were answered or failed."""
    deadline_h: Annotated[float, Field(gt=0)] = 336.0
    """Hours after which an undecided trial ends as inconclusive."""
    minimum_duration_s: Annotated[float, Field(ge=0)] = 0.0
    """Seconds before the metric may decide, so that a whole day or week is covered."""
    attribution_h: Annotated[float, Field(gt=0)] | None = None
    """Hours after a request within which its outcomes count; no limit when not given."""
    max_error_share: Share = 0.1
    """Guardrail: share of a unit's requests that the challenger may leave unanswered, mean over its units."""
    guardrail_alpha: Alpha = 0.05
    """Probability that the guardrail rolls back a challenger that keeps within it, over all looks."""
    shadow_share: Share = 1.0
    """Share of the champion's requests that the shadow sees a copy of."""
    refusal_phrases: tuple[Annotated[str, Field(min_length=1, max_length=200)], ...] = ()
    """Beginnings of answers that count as refusals."""
    prices: PriceSection | None = None
    """What `cost` is computed from."""

    @model_validator(mode="after")
    def _can_be_decided(self) -> TrialSection:
        if self.decision.type != "sequential" and self.metric.type == "quantile":
            raise wrong("decision.type", self.decision.type, "a quantile is decided by `sequential` only")
        if self.prices is None and "cost" in self._metric_names:
            raise wrong("prices", None, "give `prices`: a metric named cost is computed from them")
        most = self.challenger_share * self.coverage
        highest = max(self.ramp.steps if self.ramp else (), default=0.0)
        if highest > most * (1 + 1e-9):
            fix = f"challengers see at most {most:g} of all traffic (challenger_share x coverage): end there"
            raise wrong("ramp.steps", highest, fix)
        kinds = {self.metric.name: self.metric}
        for at, guardrail in enumerate(self.guardrails):
            kept = kinds.setdefault(guardrail.metric.name, guardrail.metric)
            if kept != guardrail.metric:
                fix = f"{kept.name} is described twice: describe it as at its first place"
                raise wrong(f"guardrails.{at}.metric", guardrail.metric.name, fix)
        return self

    @property
    def _metric_names(self) -> set[str]:
        return {self.metric.name, *(guardrail.metric.name for guardrail in self.guardrails)}
