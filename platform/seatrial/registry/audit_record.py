"""The JSON of an audit record, its hash, and what is wrong with a chain of them. No request is made here."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import seatrial.experiments
from seatrial.experiments.record import Anchor, ChampionMove
from seatrial.experiments.trial import Decision, Look, Trial

FIRST = "0" * 64  # what the first record of a service names as its predecessor
FORMAT = 2
MOVE = "alias"  # the verdict of a move by hand


@dataclass(frozen=True)
class AuditRecord:
    """One record as MLflow has it: ``body`` is the JSON, ``hash`` the tag set when it was written.

    ``key`` is the trial's id, or that of a move by hand. ``trouble`` says why there is no body.
    """

    run_id: str
    key: str
    sequence: int
    hash: str
    body: Mapping[str, Any]
    trouble: str | None = None

    def anchor(self, service: str) -> Anchor:
        """What the store is to keep of it."""
        return Anchor(self.key, service, self.sequence, self.hash, self.body.get("champion_after"))


@dataclass(frozen=True)
class History:
    """A service's records, oldest first, and what stands in the way of others.

    ``hidden`` maps the key of a record that does not count to why: its run was deleted or has no hash.
    """

    records: tuple[AuditRecord, ...]
    hidden: Mapping[str, str]


def digest(body: Mapping[str, Any]) -> str:
    """SHA-256 of the record as canonical JSON."""
    text = json.dumps(body, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


@cache
def code_digest() -> str:
    """SHA-256 over the source of everything that decides."""
    folder = Path(seatrial.experiments.__file__).parent
    total = hashlib.sha256()
    for path in sorted(folder.glob("*.py")):
        total.update(path.name.encode() + b"\0" + path.read_bytes())
    return total.hexdigest()


def record_of(
    trial: Trial,
    decision: Decision,
    looks: Sequence[Look],
    *,
    sequence: int,
    previous_hash: str,
    champion_after: str | None,
) -> dict[str, Any]:
    """The record's JSON: enough to recompute the verdict without any database."""
    return {
        "format": FORMAT,
        "sequence": sequence,
        "previous_hash": previous_hash,
        "service": trial.service,
        "trial": trial.id,
        "verdict": decision.verdict,
        "reason": decision.reason,
        "actor": decision.actor,
        "cause": decision.cause,
        "opened_at": trial.opened_at,
        "ramped_at": trial.ramped_at,
        "decided_at": decision.decided_at,
        "champion_before": trial.champion,
        "champion_after": champion_after,
        "challengers": dict(trial.challengers),
        "dropped": dict(trial.dropped),
        "stop": None if trial.stop is None else asdict(trial.stop),
        "alpha": trial.policy["alpha"],
        "policy": dict(trial.policy),
        "table": trial.table.to_json(),
        "evidence": decision.evidence.to_json(),
        "judgement": decision.judgement.to_json(),
        "looks": [look.to_json() for look in looks],
        "code_digest": code_digest(),
    }


def move_record(move: ChampionMove, at: float, *, sequence: int, previous_hash: str) -> dict[str, Any]:
    """The JSON of a champion that was moved outside of any trial."""
    return {
        "format": FORMAT,
        "sequence": sequence,
        "previous_hash": previous_hash,
        "service": move.service,
        "move": move.key,
        "verdict": MOVE,
        "reason": f"champion moved from {move.before} to {move.after}",
        "actor": move.actor,
        "decided_at": at,
        "champion_before": move.before,
        "champion_after": move.after,
    }


def verify_chain(records: Sequence[AuditRecord]) -> list[str]:
    """What is wrong with the records, one line each; empty when every hash and link holds."""
    problems: list[str] = []
    previous = FIRST
    for position, record in enumerate(records, start=1):
        problems += _unsound(record)
        if record.trouble is None and record.body.get("previous_hash") != previous:
            problems.append(f"{record.key}: does not follow the record before it: one is missing or changed")
        if record.sequence != position:
            problems.append(f"{record.key}: is number {record.sequence}, expected {position}")
        previous = record.hash
    return problems


def _unsound(record: AuditRecord) -> list[str]:
    """What is wrong with one record by itself."""
    if record.trouble is not None:
        return [f"{record.key}: {record.trouble}"]
    found = digest(record.body)
    if found != record.hash:
        return [f"{record.key}: its record was changed: hash {found[:12]}, not {record.hash[:12]}"]
    inside = record.body.get("trial", record.body.get("move")), record.body.get("sequence")
    if inside != (record.key, record.sequence):
        return [f"{record.key}: its run's tags were changed: the record is number {inside[1]} of {inside[0]}"]
    return []


def verify_history(history: History, anchors: Sequence[Anchor], trials: Mapping[str, str]) -> list[str]:
    """What is wrong with a service's records, also as a whole: taken away, rewritten or slipped in.

    ``anchors`` and ``trials`` (id → state) are the store's. Records from before it kept anchors come before
    the first that has one.
    """
    kept = {anchor.key: anchor for anchor in anchors}
    there = {record.key for record in history.records}
    closed = [trial for trial, state in trials.items() if state == "closed"]
    gone = dict.fromkeys(key for key in (*closed, *kept) if key not in there)
    problems = [f"{key}: has no record: {_where(key, history, kept)}" for key in gone]
    since = min((anchor.sequence for anchor in anchors), default=None)
    for record in history.records:
        anchor = kept.get(record.key)
        if anchor is not None and (anchor.hash, anchor.sequence) != (record.hash, record.sequence):
            problems.append(
                f"{record.key}: was rewritten: number {record.sequence} with hash {record.hash[:12]}, "
                f"the store has number {anchor.sequence} with {anchor.hash[:12]}"
            )
        is_old = record.key in trials and (since is None or record.sequence < since)
        is_being_written = trials.get(record.key) == "open"
        if anchor is None and not is_old and not is_being_written:
            problems.append(f"{record.key}: the store knows nothing of this record: it was slipped in")
    return [*verify_chain(history.records), *problems]


def _where(key: str, history: History, kept: Mapping[str, Anchor]) -> str:
    known = f" (hash {kept[key].hash[:12]})" if key in kept else ""
    return history.hidden.get(key, "its run is gone from MLflow") + known
