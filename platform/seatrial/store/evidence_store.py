"""The part of the store that counts what came of trials."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Engine, select

from seatrial.experiments.evidence import Evidence
from seatrial.experiments.trial import Trial
from seatrial.store import placing, trials
from seatrial.store.database import reading
from seatrial.store.evidence import catch_up, late_outcomes, place_all, read_evidence, units_per_day
from seatrial.store.rules import Rules
from seatrial.store.tables import evidence_units, exposures

PAGE = 50_000


class EvidenceStore:
    """Figures of trials. The first call after new rows adds them to sums that are kept."""

    engine: Engine

    def evidence(self, trial: Trial, *, now: float) -> Evidence:
        """Sufficient statistics of the trial's arms, equal to those of a recount of all their rows."""
        return read_evidence(self.engine, trial, now=now)

    def sticky(
        self, trial_id: str, after: int = 0, *, limit: int = PAGE
    ) -> tuple[list[tuple[str, str]], int]:
        """Units and the arm that each was first in, those after ``after``, and where to read on from.

        They are there once the trial's evidence has been read. Nothing left to read is an empty list.
        """
        row = evidence_units.c
        statement = (
            select(row.unit, row.arm, row.number)
            .where(row.trial_id == trial_id, row.number > after)
            .order_by(row.number)
            .limit(limit)
        )
        with reading(self.engine) as connection:
            found = connection.execute(statement).all()
        return [(unit, arm) for unit, arm, _ in found], found[-1].number if found else after

    def arms_of(self, request_ids: Sequence[str]) -> dict[str, tuple[str, str]]:
        """Arm and served version of those of the requests that are exposures already."""
        row = exposures.c
        statement = select(row.request_id, row.arm, row.served_version).where(row.request_id.in_(request_ids))
        with reading(self.engine) as connection:
            return {each: (arm, version) for each, arm, version in connection.execute(statement)}

    def outcome_counts(self, service: str) -> dict[str, int]:
        """How many outcomes of the service were joined, and of the others how many were what.

        `late`: after the attribution window, or of a user whose trial was over. `early`: of a user, before
        their first request. `unknown`: of a request or a user that no exposure has come of.
        """
        with reading(self.engine) as connection:
            latest = trials.latest_trial(connection, service)
            unplaced = placing.count_unplaced(connection, service)
        if latest is not None:
            catch_up(self.engine, latest, Rules.of(latest))
        else:
            place_all(self.engine, service, unplaced)
        with reading(self.engine) as connection:
            every, apart = placing.count_outcomes(connection, service)
            late = late_outcomes(connection, service)
        joined = every - sum(apart.values()) - late
        return {"joined": joined, **apart, "late": apart["late"] + late}

    def units_per_day(self, service: str, *, now: float) -> float | None:
        """Units a day that would be in a trial of everybody, as seen by the latest one; None without any."""
        with reading(self.engine) as connection:
            latest = trials.latest_trial(connection, service)
            return None if latest is None else units_per_day(connection, latest, now=now)
