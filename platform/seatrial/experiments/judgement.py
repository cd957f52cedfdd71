"""What a look at a trial says."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from seatrial.experiments.evidence import finite
from seatrial.experiments.sequential import Comparison

VerdictName = Literal["promote", "roll_back", "inconclusive", "invalid", "superseded"]


@dataclass(frozen=True)
class GuardrailResult:
    """One guardrail of one challenger: the ``value`` seen, its ``limit``, and whether ``p`` breaks it.

    All are NaN while nothing can be said.
    """

    name: str
    value: float
    limit: float
    p: float
    breached: bool


@dataclass(frozen=True)
class ArmJudgement:
    """What one look found of one challenger."""

    difference: Comparison
    lift: Comparison
    failures_p: float
    guardrails: tuple[GuardrailResult, ...] = ()
    best_probability: float | None = None


@dataclass(frozen=True)
class Judgement:
    """One look at a trial. ``verdict`` is None while it goes on; then ``reason`` says what is missing.

    ``difference`` (treatment minus control) decides. ``lift`` is the same relative to the control, for
    reading; its interval leaves zero together with the difference's. It is undefined where the control's
    mean is not told apart from zero, which must not keep a challenger that answers from beating a champion
    that never does. Both, and ``failures_p``, are the leading challenger's.
    """

    verdict: VerdictName | None
    reason: str
    srm_p: float
    failures_p: float
    difference: Comparison
    lift: Comparison
    arm: str | None = None
    """The challenger that won."""
    arms: Mapping[str, ArmJudgement] = field(default_factory=dict)
    drop: Mapping[str, str] = field(default_factory=dict)
    """Challengers that are to be taken out while others go on, and why."""
    weights: Mapping[str, float] | None = None
    """The shares that a bandit wants now."""
    look: int | None = None
    """The planned look that this is, from 1; None between planned looks and where none are planned."""

    def to_json(self) -> dict[str, Any]:
        """Plain JSON; numbers that are not finite become null."""
        result: dict[str, Any] = finite(asdict(self))
        return result

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Judgement:
        """The inverse of :meth:`to_json`, also of what older versions wrote."""
        return cls(
            value["verdict"],
            value["reason"],
            _number(value["srm_p"]),
            _number(value["failures_p"]),
            _comparison(value["difference"]),
            _comparison(value["lift"]),
            value.get("arm"),
            {name: _arm(each) for name, each in value.get("arms", {}).items()},
            dict(value.get("drop", {})),
            value.get("weights"),
            value.get("look"),
        )


def _arm(value: Mapping[str, Any]) -> ArmJudgement:
    guardrails = tuple(
        GuardrailResult(
            each["name"], _number(each["value"]), _number(each["limit"]), _number(each["p"]), each["breached"]
        )
        for each in value["guardrails"]
    )
    compared = _comparison(value["difference"]), _comparison(value["lift"])
    return ArmJudgement(*compared, _number(value["failures_p"]), guardrails, value["best_probability"])


def _comparison(value: Mapping[str, Any]) -> Comparison:
    return Comparison(**{key: _number(each) for key, each in value.items()})


def _number(value: float | None) -> float:
    return math.nan if value is None else value
