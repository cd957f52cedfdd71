"""A trial, its policy, and how it ended."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

from seatrial.experiments.assignment import TrialTable
from seatrial.experiments.evidence import Evidence
from seatrial.experiments.judgement import Judgement, VerdictName
from seatrial.experiments.policy import TrialPolicy
from seatrial.experiments.verdict import judge, part_of_plan, planned_units

CHAMPION = "champion"
CHALLENGER = "challenger"
PREVIOUS = "previous"
SHADOW = "shadow"

TrialState = Literal["open", "closed"]
Cause = Literal["judgement", "person", "load"]


# The rows of exposures have so much room for the arm's name, which is its alias.
MOST_ALIAS_CHARS = 32


def is_challenger(alias: str) -> bool:
    """Whether the alias asks for a place in a trial: `challenger`, `challenger-b`, …"""
    return alias == CHALLENGER or alias.startswith(f"{CHALLENGER}-")


@dataclass(frozen=True)
class Stop:
    """A person's wish to end a trial: who, and why."""

    actor: str
    reason: str


@dataclass(frozen=True)
class Trial:
    """One comparison. ``steps`` are the closing steps that are done, so that none is done twice.

    ``challengers`` maps each challenger's alias, which is its arm's name, to its version, those ``dropped``
    (alias → why) included; ``table`` holds only the arms that go on. ``ramped_at`` is when the table's
    coverage was last raised.
    """

    id: str
    service: str
    number: int
    state: TrialState
    table: TrialTable
    policy: Mapping[str, Any]
    champion: str
    challengers: Mapping[str, str]
    opened_at: float
    ramped_at: float
    closed_at: float | None = None
    verdict: VerdictName | None = None
    reason: str | None = None
    steps: tuple[str, ...] = ()
    dropped: Mapping[str, str] = field(default_factory=dict)
    stop: Stop | None = None

    @property
    def tag(self) -> str:
        """The tag by which versions say what became of them in this trial."""
        return f"seatrial.trial.{self.id}"

    @property
    def challenger(self) -> str:
        """The first challenger's version."""
        return next(iter(self.challengers.values()))

    @property
    def arms(self) -> Mapping[str, str]:
        """Every arm that the trial began with: its name and version, the champion's first."""
        return {CHAMPION: self.champion, **self.challengers}


@dataclass(frozen=True)
class Decision:
    """Why and by whom a trial was ended, with all the evidence of that moment.

    ``cause`` is what decided: the judgement, a person's wish, or challengers that do not load. Decisions from
    before it was kept have none.
    """

    id: str
    trial_id: str
    service: str
    verdict: VerdictName
    reason: str
    actor: str
    evidence: Evidence
    judgement: Judgement
    decided_at: float
    cause: Cause | None = None

    @property
    def arm(self) -> str:
        """The challenger that a promotion makes champion; records with one challenger do not name it."""
        return self.judgement.arm or CHALLENGER

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
    planned_units: int | None = None
    """What a planned look counts as: see :func:`seatrial.experiments.verdict.planned_units`."""

    @property
    def counts_as(self) -> int:
        """The units by which the plan goes on; all that were seen, where nobody had left."""
        return self.units if self.planned_units is None else self.planned_units

    def to_json(self) -> dict[str, Any]:
        """Plain JSON for the audit record."""
        return {**asdict(self), "judgement": self.judgement.to_json()}


def look_at(trial: Trial, evidence: Evidence, now: float) -> Judgement:
    """The judgement of the trial's own policy."""
    return judge(
        TrialPolicy.from_json(trial.policy),
        _shares(trial),
        trial.opened_at,
        evidence,
        now,
        started=len(trial.challengers),
        is_reweighted=trial.table.bucket_version > 0,
        hashed=trial.table.bucket_shares,
    )


def units_of_plan(trial: Trial, evidence: Evidence) -> int:
    """The exposed units by which the trial's planned looks go."""
    return planned_units(_shares(trial), evidence, started=len(trial.challengers))


def units_to_last_look(trial: Trial, evidence: Evidence, planned: int) -> float:
    """Exposed units of all arms at which the last look, at ``planned`` units of the plan, falls due."""
    part = part_of_plan(_shares(trial), started=len(trial.challengers))
    return evidence.units + part * (planned - units_of_plan(trial, evidence))


def _shares(trial: Trial) -> dict[str, float]:
    return {arm.name: arm.weight for arm in trial.table.arms}
