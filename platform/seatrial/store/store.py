"""The one door to the database."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from sqlalchemy import select, update

from seatrial.experiments.record import Anchor
from seatrial.experiments.trial import Decision, Look, Stop, Trial
from seatrial.store import anchors, deploying, lease, trials, writer
from seatrial.store.bulk import Row
from seatrial.store.database import migrate, open_engine, reading, writing
from seatrial.store.evidence_store import EvidenceStore
from seatrial.store.job_store import JobStore
from seatrial.store.latency import Latency, latest
from seatrial.store.tables import replicas, services


class Store(JobStore, EvidenceStore):
    """Rows in, rows out; every write is idempotent. ``url`` is `sqlite:///…` or `postgresql+psycopg://…`.

    Raises (every method):
        RetryableError: the database is away or stayed locked; try the same call again.
    """

    def __init__(self, url: str) -> None:
        self.engine = open_engine(url)

    def migrate(self) -> None:
        """Create or upgrade the tables."""
        migrate(self.engine)

    def close(self) -> None:
        """Close pooled connections; a later call opens new ones."""
        self.engine.dispose()

    def add_exposures(self, rows: Sequence[Row]) -> None:
        """Add exposures, keyed by ``request_id``: one already there stays as it is.

        Columns: request_id, trial_id, service, unit, sticky, arm, assigned_version, served_version, fallback,
        status, at; and, where known, ttft_s, latency_s, prompt_tokens,
        completion_tokens, refused, error.

        Raises:
            ValueError: a column is unknown or missing; nothing is written.
        """
        with writing(self.engine) as connection:
            writer.add_exposures(connection, rows)

    def add_outcomes(self, rows: Sequence[Row]) -> None:
        """Add outcomes made by :func:`outcome_row`, keyed by ``outcome_id``.

        Raises:
            ValueError: a value is not finite, a column is unknown or missing; nothing is written.
        """
        with writing(self.engine) as connection:
            writer.add_outcomes(connection, rows)

    def put_replica(self, row: Row) -> None:
        """Insert or replace one replica's status: replica_id, app, service, revision, loaded, at.

        ``loaded`` maps a version to "ready", "loading", or what went wrong.
        """
        with writing(self.engine) as connection:
            writer.put_replica(connection, row)

    def forget_replicas(self, *, before: float) -> None:
        """Delete the status of replicas last heard of earlier than ``before``."""
        with writing(self.engine) as connection:
            writer.forget_replicas(connection, before=before)

    def take_lease(self, name: str, holder: str, *, now: float, lasts_s: float) -> str:
        """Take or renew the lease unless another holder's still runs; whose it is afterwards."""
        with writing(self.engine) as connection:
            return lease.take(connection, name, holder, now=now, lasts_s=lasts_s)

    def give_back_lease(self, name: str, holder: str) -> None:
        """Let the next one take the lease at once; another holder's stays."""
        with writing(self.engine) as connection:
            lease.give_back(connection, name, holder)

    def holds_lease(self, name: str, holder: str, *, now: float) -> bool:
        """Whether the holder has the lease and it still runs."""
        with reading(self.engine) as connection:
            return lease.is_held(connection, name, holder, now=now)

    def forget_leases(self, *, before: float) -> None:
        """Delete the leases that ran out earlier than ``before``."""
        with writing(self.engine) as connection:
            lease.forget(connection, before=before)

    def put_service(self, name: str, config: dict[str, Any], *, now: float) -> bool:
        """Insert the service, or replace its configuration; whether the configuration changed.

        ``config`` is `ServiceConfig.model_dump(mode="json")`. Writing the same again only sets `updated_at`,
        by which the controller knows that it was asked to try again. A service that was to be deleted stays.
        """
        with writing(self.engine) as connection:
            return deploying.put_service(connection, name, config, now=now)

    def services(self) -> dict[str, dict[str, Any]]:
        """Every service: name → config, state, created_at, updated_at, route_prefix, deleted_at."""
        with reading(self.engine) as connection:
            return deploying.read_services(connection)

    def ask_delete(self, name: str, *, now: float) -> bool:
        """Mark the service for the controller to take away; whether there is one."""
        with writing(self.engine) as connection:
            return deploying.ask_delete(connection, name, now=now)

    def remove_service(self, name: str, *, deleted_at: float) -> None:
        """Remove the service that was marked then, and the status of its replicas."""
        with writing(self.engine) as connection:
            deploying.remove_service(connection, name, deleted_at=deleted_at)

    def put_state(self, name: str, state: dict[str, Any]) -> None:
        """Replace what the controller keeps of the service."""
        with writing(self.engine) as connection:
            connection.execute(
                update(services)
                .where(services.c.name == name)
                .values(state=json.dumps(state, sort_keys=True))
            )

    def replicas(self, service: str) -> list[dict[str, Any]]:
        """The status of every replica of the service: replica_id, app, revision, loaded, at."""
        statement = select(replicas).where(replicas.c.service == service).order_by(replicas.c.replica_id)
        with reading(self.engine) as connection:
            rows = connection.execute(statement).mappings().all()
        return [{**row, "loaded": json.loads(row["loaded"])} for row in rows]

    def open_trial(self, trial: Trial) -> None:
        """Insert the trial unless it is there."""
        with writing(self.engine) as connection:
            trials.open_trial(connection, trial)

    def change_trial(self, trial: Trial, look: Look | None = None) -> None:
        """Replace the table of an undecided trial, when it was ramped and what it dropped; keep the look."""
        with writing(self.engine) as connection:
            if trials.change_trial(connection, trial) and look is not None:
                trials.add_look(connection, look)

    def ask_stop(self, trial_id: str, stop: Stop) -> bool:
        """Ask for the trial's end; whether it was open and nobody had asked before."""
        with writing(self.engine) as connection:
            return trials.ask_stop(connection, trial_id, stop)

    def trials(self, service: str | None = None) -> list[Trial]:
        """The latest 200 trials, of one service or of all, the newest first."""
        with reading(self.engine) as connection:
            return trials.all_trials(connection, service)

    def trial(self, trial_id: str) -> Trial | None:
        """The trial with this id."""
        with reading(self.engine) as connection:
            return trials.read_trial(connection, trial_id)

    def latencies(self, trial_id: str) -> dict[str, Latency]:
        """Arm → how long the trial's latest answers took."""
        with reading(self.engine) as connection:
            return latest(connection, trial_id)

    def latest_trial(self, service: str) -> Trial | None:
        """The service's last trial, open or closed."""
        with reading(self.engine) as connection:
            return trials.latest_trial(connection, service)

    def decide(self, decision: Decision, look: Look | None = None) -> None:
        """Insert the decision and the look that it came from; a trial's first decision stands.

        One that was not a person's is not inserted once a person has asked for the trial's end.
        """
        with writing(self.engine) as connection:
            if trials.add_decision(connection, decision) and look is not None:
                trials.add_look(connection, look)

    def decision(self, trial_id: str) -> Decision | None:
        """The trial's decision, if there is one."""
        with reading(self.engine) as connection:
            return trials.read_decision(connection, trial_id)

    def mark_step(self, trial_id: str, step: str) -> None:
        """Note that a closing step is done."""
        with writing(self.engine) as connection:
            trials.mark_step(connection, trial_id, step)

    def close_trial(self, decision: Decision) -> None:
        """Close the decided trial."""
        with writing(self.engine) as connection:
            trials.close_trial(connection, decision)

    def add_anchor(self, anchor: Anchor) -> None:
        """Keep an audit record's hash unless there is one."""
        with writing(self.engine) as connection:
            anchors.add_anchor(connection, anchor)

    def anchors(self, service: str) -> list[Anchor]:
        """The hashes of the service's audit records, oldest first."""
        with reading(self.engine) as connection:
            return anchors.read_anchors(connection, service)

    def last_anchor(self, service: str) -> Anchor | None:
        """The hash of the service's newest audit record."""
        with reading(self.engine) as connection:
            return anchors.last_anchor(connection, service)

    def trial_states(self, service: str) -> dict[str, str]:
        """Id and state of every trial of the service, the oldest first."""
        with reading(self.engine) as connection:
            return anchors.trial_states(connection, service)

    def add_look(self, look: Look) -> None:
        """Keep what the comparison said at this number of units."""
        with writing(self.engine) as connection:
            trials.add_look(connection, look)

    def looks(self, trial_id: str) -> list[Look]:
        """The trial's looks by number of units."""
        with reading(self.engine) as connection:
            return trials.read_looks(connection, trial_id)

    def last_look_units(self, trial_id: str) -> int:
        """Units of the trial's last look; 0 when there is none."""
        with reading(self.engine) as connection:
            return trials.last_look_units(connection, trial_id)
