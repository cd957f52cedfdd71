"""A trial, its policy, and how it ended."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from seatrial.experiments.assignment import TrialTable
from seatrial.experiments.evidence import Evidence
from seatrial.experiments.verdict import Judgement, VerdictName

CHAMPION = "champion"
CHALLENGER = "challenger"
PREVIOUS = "previous"

TrialState = Literal["open", "closed"]


@dataclass(frozen=True)
class Trial:
    """One comparison. ``steps`` are the closing steps that are done, so that none is done twice."""

    id: str
    service: str
    number: int
    state: TrialState
    table: TrialTable
    policy: Mapping[str, Any]
    champion: str
    challenger: str
    opened_at: float
    closed_at: float | None = None
    verdict: VerdictName | None = None
    reason: str | None = None
    steps: tuple[str, ...] = ()


@dataclass(frozen=True)
class Decision:
    """Why and by whom a trial was ended, with all the evidence of that moment."""

    id: str
    trial_id: str
    service: str
    verdict: VerdictName
    reason: str
    actor: str
    evidence: Evidence
    judgement: Judgement
    decided_at: float

    def to_json(self) -> dict[str, Any]:
        """Plain JSON that :meth:`from_json` reads."""
        plain = {field.name: getattr(self, field.name) for field in fields(self)}
        return {**plain, "evidence": self.evidence.to_json(), "judgement": self.judgement.to_json()}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Decision:
        """The inverse of :meth:`to_json`."""
        evidence = Evidence.from_json(value["evidence"])
        return cls(**{**value, "evidence": evidence, "judgement": Judgement.from_json(value["judgement"])})


@dataclass(frozen=True)
class Look:
    """What the comparison said when ``units`` had been seen."""

    trial_id: str
    units: int
    at: float
    exposures: Mapping[str, int]
    judgement: Judgement

    def to_json(self) -> dict[str, Any]:
        """Plain JSON for the audit record."""
        return {**asdict(self), "judgement": self.judgement.to_json()}
