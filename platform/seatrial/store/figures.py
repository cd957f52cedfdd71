"""What one unit did in a trial: pure, and the same in whatever order its rows came in."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from math import fsum
from typing import NamedTuple

from seatrial.experiments.policy import MetricPolicy
from seatrial.store.rules import Rules

XY = tuple[float, float] | None
"""A metric's value of a unit and what goes with it: a denominator, or the covariate. None: no value."""


class Request(NamedTuple):
    """One row of the exposures."""

    request_id: str
    arm: str
    at: float
    error: str | None
    status: int
    fallback: bool
    latency_s: float | None
    ttft_s: float | None
    prompt_tokens: int | None
    completion_tokens: int | None
    refused: bool | None

    @property
    def is_answered(self) -> bool:
        """Whether it is an exposure."""
        return self.error is None

    @property
    def is_failed(self) -> bool:
        """The client's own faults (4xx, and 499 for one that went away) say nothing about an arm."""
        return self.error is not None and not 400 <= self.status < 500

    @property
    def is_left(self) -> bool:
        """Whether the arm's own version did not answer."""
        return self.is_failed or bool(self.fallback)


class Told(NamedTuple):
    """One outcome."""

    metric: str
    value: float
    at: float


class UnitFigures(NamedTuple):
    """One unit in one arm. ``left`` counts requests that failed or fell back; values go by metric."""

    requests: int
    answered: int
    failed: int
    fell_back: int
    left: int
    outcomes: int
    ignored: int
    late: int
    early: int
    values: tuple[XY, ...]

    def to_text(self) -> str:
        """JSON that :meth:`from_text` reads back to the last bit."""
        return json.dumps(self, separators=(",", ":"))

    @classmethod
    def from_text(cls, text: str) -> UnitFigures:
        """The inverse of :meth:`to_text`."""
        *counts, values = json.loads(text)
        pairs = tuple(None if each is None else (each[0], each[1]) for each in values)
        return cls._make([*counts, pairs])


class _Arm:
    """The rows of one unit in one arm, outcomes sorted into those that count and those that do not."""

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.by_request: dict[str, dict[str, list[float]]] = {}
        self.by_unit: dict[str, list[float]] = {}
        self.late = 0
        self.early = 0


def figures_of(
    requests: Sequence[Request],
    told: Mapping[str, Sequence[Told]],
    told_of_unit: Sequence[Told],
    rules: Rules,
    covariates: Mapping[str, float],
    *,
    opened_at: float = 0.0,
) -> dict[str, UnitFigures]:
    """Arm → figures of one unit, in the order of its first request in each.

    ``told`` are outcomes by request id; ``told_of_unit`` speak for the unit and belong to the arm of its last
    request before them. Those before its first request, told since the trial ``opened_at``, are early: they
    are counted, but not for an arm. ``covariates`` has a value for each metric that is adjusted.
    """
    arms: dict[str, _Arm] = {}
    ordered = sorted(requests, key=lambda request: (request.at, request.request_id))
    for request in ordered:
        arm = arms.get(request.arm)
        if arm is None:
            arm = arms[request.arm] = _Arm()
        arm.requests.append(request)
        for each in told.get(request.request_id, ()):
            _sort_in(arm, arm.by_request.setdefault(request.request_id, {}), each, request.at, rules)
    for each in told_of_unit:
        before = next((request for request in reversed(ordered) if request.at <= each.at), None)
        if before is not None:
            arm = arms[before.arm]
            _sort_in(arm, arm.by_unit, each, before.at, rules)
        elif ordered and each.at >= opened_at:
            arms[ordered[0].arm].early += 1
    return {name: _figures(arm, rules, covariates) for name, arm in arms.items()}


def _sort_in(arm: _Arm, into: dict[str, list[float]], told: Told, since: float, rules: Rules) -> None:
    if rules.attribution_s is not None and told.at > since + rules.attribution_s:
        arm.late += 1
    else:
        into.setdefault(told.metric, []).append(told.value)


def _figures(arm: _Arm, rules: Rules, covariates: Mapping[str, float]) -> UnitFigures:
    answered = [request for request in arm.requests if request.is_answered]
    primary = rules.metrics[0]
    said = list(arm.by_unit.get(primary.name, ()))
    beside: list[float] = []
    if not answered:
        said, beside = beside, said
    for request in arm.requests:
        into = said if request.is_answered else beside
        into.extend(arm.by_request.get(request.request_id, {}).get(primary.name, ()))
    wrong = [value for value in (*said, *beside) if not _counts(primary, value)]
    return UnitFigures(
        requests=len(arm.requests),
        answered=len(answered),
        failed=sum(request.is_failed for request in arm.requests),
        fell_back=sum(bool(request.fallback) for request in arm.requests),
        left=sum(request.is_left for request in arm.requests),
        outcomes=sum(_counts(primary, value) for value in said),
        ignored=len(wrong),
        late=arm.late,
        early=arm.early,
        values=tuple(_value(metric, arm, answered, rules, covariates) for metric in rules.metrics),
    )


def _counts(metric: MetricPolicy, value: float) -> bool:
    """A share lies between 0 and 1; other values are left out of it."""
    return metric.type != "proportion" or 0.0 <= value <= 1.0


def _value(
    metric: MetricPolicy,
    arm: _Arm,
    answered: Sequence[Request],
    rules: Rules,
    covariates: Mapping[str, float],
) -> XY:
    if metric.type in ("count", "ratio"):
        x = _total(metric.name, metric, arm, answered, rules)
    else:
        x = _mean(metric, arm, answered, rules)
    if x is None:
        return None
    x = x if metric.cap is None else min(x, metric.cap)
    if metric.denominator is not None:
        return x, _total(metric.denominator, metric, arm, answered, rules) or 0.0
    return x, covariates.get(metric.name, 0.0)


def _mean(metric: MetricPolicy, arm: _Arm, answered: Sequence[Request], rules: Rules) -> float | None:
    """The mean over the unit's requests, unless something was said of the unit as a whole."""
    if metric.name in MEASURES:
        return _average(_measured(metric.name, arm, rules))
    of_unit = [value for value in arm.by_unit.get(metric.name, ()) if _counts(metric, value)]
    if of_unit and answered:
        return _average(of_unit)
    found = []
    for request in answered:
        said = arm.by_request.get(request.request_id, {}).get(metric.name, ())
        values = [value for value in said if _counts(metric, value)]
        if values or metric.missing_counts_zero:
            found.append(_average(values) or 0.0)
    return _average(found)


def _total(
    name: str, metric: MetricPolicy, arm: _Arm, answered: Sequence[Request], rules: Rules
) -> float | None:
    """The sum over the unit's requests, and over what was said of the unit as a whole."""
    if name in MEASURES:
        measured = _measured(name, arm, rules)
        return fsum(measured) if measured else None
    found = list(arm.by_unit.get(name, ()))
    for request in answered:
        found.extend(arm.by_request.get(request.request_id, {}).get(name, ()))
    return fsum(found) if answered and (found or metric.missing_counts_zero) else None


def _average(values: Sequence[float]) -> float | None:
    return fsum(values) / len(values) if values else None


def _measured(name: str, arm: _Arm, rules: Rules) -> list[float]:
    measure = MEASURES[name]
    found: Iterable[float | None] = (measure(request, rules) for request in arm.requests)
    return [float(value) for value in found if value is not None]


def _of_answer(request: Request, value: float | None) -> float | None:
    return value if request.is_answered else None


def _cost(request: Request, rules: Rules) -> float | None:
    counts = (("prompt", request.prompt_tokens), ("completion", request.completion_tokens))
    known = [count * rules.prices.get(kind, 0.0) / 1e6 for kind, count in counts if count is not None]
    return _of_answer(request, fsum(known) if known else None)


MEASURES: Mapping[str, Callable[[Request, Rules], float | None]] = {
    "requests": lambda request, rules: 1.0,
    "errors": lambda request, rules: float(request.is_failed),
    "unanswered": lambda request, rules: float(request.is_left),
    "refusals": lambda request, rules: _of_answer(request, request.refused),
    "latency_s": lambda request, rules: _of_answer(request, request.latency_s),
    "ttft_s": lambda request, rules: _of_answer(request, request.ttft_s),
    "prompt_tokens": lambda request, rules: _of_answer(request, request.prompt_tokens),
    "completion_tokens": lambda request, rules: _of_answer(request, request.completion_tokens),
    "cost": _cost,
}
"""What each request says by itself; every other name is an outcome's."""
