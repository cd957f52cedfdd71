"""How long the latest answers of a trial took."""

from __future__ import annotations

from dataclasses import dataclass, field

from sqlalchemy import Connection, select

from seatrial.store.tables import exposures

LATEST = 2000


@dataclass
class Latency:
    """Seconds of one arm's latest answers, in no order: to the end, and to the first token."""

    latency_s: list[float] = field(default_factory=list)
    ttft_s: list[float] = field(default_factory=list)


def latest(connection: Connection, trial_id: str) -> dict[str, Latency]:
    """Arm → latency, of the trial's 2,000 latest answers that came without an error."""
    row = exposures.c
    statement = (
        select(row.arm, row.latency_s, row.ttft_s)
        .where(row.trial_id == trial_id, row.error.is_(None))
        .order_by(row.at.desc())
        .limit(LATEST)
    )
    found: dict[str, Latency] = {}
    for arm, latency_s, ttft_s in connection.execute(statement):
        kept = found.setdefault(arm, Latency())
        if latency_s is not None:
            kept.latency_s.append(latency_s)
        if ttft_s is not None:
            kept.ttft_s.append(ttft_s)
    return found
