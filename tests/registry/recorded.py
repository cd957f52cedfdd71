"""Trials that were really judged, and a store and an MLflow server that have their records."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from seatrial.config.trial import TrialSection
from seatrial.experiments.assignment import Arm, TrialTable
from seatrial.experiments.evidence import ArmEvidence, Evidence
from seatrial.experiments.record import ChampionMove
from seatrial.experiments.sequential import ArmStats
from seatrial.experiments.trial import Decision, Trial, look_at
from seatrial.reconcile.actions import CloseTrial, Decide, OpenTrial, WriteAudit, WriteMove
from seatrial.reconcile.apply import Applier
from seatrial.registry import audit
from seatrial.registry.audit_record import AuditRecord
from seatrial.registry.client import connect
from seatrial.store import Store

AT = 100_000.0


def judged(service: str, number: int = 1, wins: tuple[int, int] = (300, 420)) -> tuple[Trial, Decision]:
    """A trial of 1,000 users in each arm, and the decision that its judgement asks for."""
    versions = {"champion": str(number), "challenger": str(number + 1)}
    arms = tuple(Arm(name, version, 0.5) for name, version in versions.items())
    name = f"{service}-{number}"
    policy = TrialSection(minimum_units=200).model_dump(mode="json")
    opened_at = AT + 1000 * number
    trial = Trial(
        name, service, number, "open", TrialTable(name, "seed", 1.0, arms), policy, versions["champion"],
        {"challenger": versions["challenger"]}, opened_at, opened_at,
    )  # fmt: skip
    found = tuple(
        ArmEvidence(arm.name, arm.version, 1000, 1000, 1000, 1000, 0, 0, 1000, ArmStats(1000, won, won))
        for arm, won in zip(arms, map(float, wins), strict=True)
    )
    evidence = Evidence(opened_at + 500, found)
    judgement = look_at(trial, evidence, opened_at + 500)
    assert judgement.verdict is not None
    decision = Decision(
        name, name, service, judgement.verdict, judgement.reason, "seatrial controller", evidence, judgement,
        opened_at + 500, "judgement",
    )  # fmt: skip
    return trial, decision


@dataclass
class Archive:
    """One service's decisions in a store of its own, and their records in a shared MLflow."""

    service: str
    uri: str
    folder: Path

    def __post_init__(self) -> None:
        self.url = f"sqlite:///{self.folder / self.service}.db"
        self.store = Store(self.url)
        self.store.migrate()
        self.client = connect(self.uri)
        self.applier = Applier(self.store, None, self.uri)  # type: ignore[arg-type]  # no application is put

    def end(self, number: int = 1) -> str:
        """A trial from its opening to its record; its id."""
        trial, decision = judged(self.service, number)
        for action in (
            OpenTrial(self.service, trial),
            Decide(self.service, decision),
            WriteAudit(self.service, trial, decision),
            CloseTrial(self.service, decision),
        ):
            self.applier.apply(action)
        return trial.id

    def move(self, before: str, after: str) -> str:
        """A champion moved by hand, recorded; its key."""
        last = self.store.last_anchor(self.service)
        key = f"{self.service}--move-{last.sequence + 1 if last else 1}"
        move = ChampionMove(key, self.service, before, after, "a person, through the registry")
        self.applier.apply(WriteMove(self.service, move))
        return key

    @property
    def records(self) -> list[AuditRecord]:
        return audit.chain(self.service, uri=self.uri)

    def problems(self) -> list[str]:
        history = audit.history(self.service, uri=self.uri)
        return audit.verify_history(
            history, self.store.anchors(self.service), self.store.trial_states(self.service)
        )

    def rewrite(self, number: int, **changes: Any) -> None:
        """Change a record and make the chain after it fit again, as one with all of MLflow's rights could."""
        previous = self.records[number - 2].hash if number > 1 else "0" * 64
        for record in self.records[number - 1 :]:
            body = {**record.body, **changes, "previous_hash": previous}
            previous, changes = audit.digest(body), {}
            self.client.log_dict(record.run_id, body, audit.RECORD)
            self.client.set_tag(record.run_id, audit.PREVIOUS_TAG, body["previous_hash"])
            self.client.set_tag(record.run_id, audit.HASH_TAG, previous)
