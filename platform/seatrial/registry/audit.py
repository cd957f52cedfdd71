"""The audit record of a trial: an MLflow run whose JSON is chained to the record before it by hash.

A run is made with its trial's tag in one request and gets its hash last. A crash in between leaves a run
without hash, which the next write completes; two records of one trial cannot come about.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import seatrial.experiments
from seatrial.experiments.trial import Decision, Look, Trial
from seatrial.registry.client import connect

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

EXPERIMENT = "seatrial-audit"
RECORD = "record.json"
PLOT = "trial.png"
SERVICE_TAG = "seatrial.service"
TRIAL_TAG = "seatrial.trial"
SEQUENCE_TAG = "seatrial.sequence"
PREVIOUS_TAG = "seatrial.previous_hash"
HASH_TAG = "seatrial.record_hash"
FIRST = "0" * 64  # what the first record of a service names as its predecessor
_MAX_RUNS = 10_000


@dataclass(frozen=True)
class AuditRecord:
    """One record as MLflow has it: ``body`` is the JSON, ``hash`` the tag set when it was written."""

    run_id: str
    trial_id: str
    sequence: int
    hash: str
    body: Mapping[str, Any]


def write(trial: Trial, decision: Decision, looks: Sequence[Look], *, uri: str | None = None) -> str:
    """Write the trial's record unless it is there; the id of its run.

    Raises:
        mlflow.exceptions.MlflowException: the server refuses or does not answer; write again later.
    """
    client = connect(uri)
    experiment = _experiment(client)
    run = _find(client, experiment, trial)
    if run is None:
        run = _start(client, experiment, trial, decision)
    run_id = str(run.info.run_id)
    if HASH_TAG not in run.data.tags:
        _fill(client, run, trial, decision, looks)
    return run_id


def chain(service: str, *, uri: str | None = None) -> list[AuditRecord]:
    """The service's finished records, oldest first."""
    client = connect(uri)
    experiment = client.get_experiment_by_name(EXPERIMENT)
    if experiment is None:
        return []
    runs = _runs(client, experiment.experiment_id, f"tags.`{SERVICE_TAG}` = '{service}'")
    return [_read(client, run) for run in sorted(runs, key=_sequence) if HASH_TAG in run.data.tags]


def find(trial_id: str, *, uri: str | None = None) -> AuditRecord | None:
    """The finished record of one trial."""
    client = connect(uri)
    experiment = client.get_experiment_by_name(EXPERIMENT)
    if experiment is None:
        return None
    runs = _runs(client, experiment.experiment_id, f"tags.`{TRIAL_TAG}` = '{trial_id}'")
    return next((_read(client, run) for run in runs if HASH_TAG in run.data.tags), None)


def verify_chain(records: Sequence[AuditRecord]) -> list[str]:
    """What is wrong with the records, one line each; empty when every hash and link holds."""
    problems: list[str] = []
    previous = FIRST
    for position, record in enumerate(records, start=1):
        found = digest(record.body)
        if found != record.hash:
            problems.append(
                f"{record.trial_id}: its record was changed: hash {found[:12]}, not {record.hash[:12]}"
            )
        if record.body.get("previous_hash") != previous:
            problems.append(
                f"{record.trial_id}: does not follow the record before it: one is missing or changed"
            )
        if record.sequence != position:
            problems.append(f"{record.trial_id}: is number {record.sequence}, expected {position}")
        previous = record.hash
    return problems


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
    trial: Trial, decision: Decision, looks: Sequence[Look], *, sequence: int, previous_hash: str
) -> dict[str, Any]:
    """The record's JSON: enough to recompute the verdict without any database."""
    promoted = decision.verdict == "promote"
    return {
        "format": 1,
        "sequence": sequence,
        "previous_hash": previous_hash,
        "service": trial.service,
        "trial": trial.id,
        "verdict": decision.verdict,
        "reason": decision.reason,
        "actor": decision.actor,
        "opened_at": trial.opened_at,
        "decided_at": decision.decided_at,
        "champion_before": trial.champion,
        "champion_after": trial.challenger if promoted else None if _by_person(decision) else trial.champion,
        "challenger": trial.challenger,
        "alpha": trial.policy["alpha"],
        "policy": dict(trial.policy),
        "table": trial.table.to_json(),
        "evidence": decision.evidence.to_json(),
        "judgement": decision.judgement.to_json(),
        "looks": [look.to_json() for look in looks],
        "code_digest": code_digest(),
    }


def _by_person(decision: Decision) -> bool:
    """Then the registry, not the trial, says who is champion."""
    return decision.verdict == "superseded"


def _experiment(client: MlflowClient) -> str:
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(EXPERIMENT)
    if found is not None:
        return str(found.experiment_id)
    try:
        return str(client.create_experiment(EXPERIMENT))
    except MlflowException:
        found = client.get_experiment_by_name(EXPERIMENT)  # somebody made it in between
        if found is None:
            raise
        return str(found.experiment_id)


def _start(client: MlflowClient, experiment: str, trial: Trial, decision: Decision) -> Run:
    last = _last(client, experiment, trial.service)
    tags = {
        SERVICE_TAG: trial.service,
        TRIAL_TAG: trial.id,
        SEQUENCE_TAG: str(_sequence(last) + 1 if last else 1),
        PREVIOUS_TAG: last.data.tags[HASH_TAG] if last else FIRST,
        "seatrial.verdict": decision.verdict,
        "seatrial.actor": decision.actor,
        "mlflow.note.content": f"**{decision.verdict}** — {decision.reason}",
    }
    started = int(decision.decided_at * 1000)
    return client.create_run(
        experiment, start_time=started, tags=tags, run_name=f"{trial.id} {decision.verdict}"
    )


def _fill(client: MlflowClient, run: Run, trial: Trial, decision: Decision, looks: Sequence[Look]) -> None:
    from mlflow.entities import Metric

    from seatrial.registry.audit_plot import draw

    run_id = run.info.run_id
    tags = run.data.tags
    body = record_of(
        trial, decision, looks, sequence=int(tags[SEQUENCE_TAG]), previous_hash=tags[PREVIOUS_TAG]
    )
    client.log_dict(run_id, body, RECORD)
    client.log_figure(run_id, draw(trial, decision, looks), PLOT)
    metrics = [
        Metric(f"difference/{name}", value, int(look.at * 1000), look.units)
        for look in looks
        if look.judgement.difference.is_defined
        for name, value in _points(look)
    ]
    for start in range(0, len(metrics), 900):  # MLflow takes at most 1,000 in one request
        client.log_batch(run_id, metrics=metrics[start : start + 900])
    client.set_tag(run_id, HASH_TAG, digest(body))
    client.set_terminated(run_id, end_time=int(decision.decided_at * 1000))


def _points(look: Look) -> list[tuple[str, float]]:
    found = look.judgement.difference
    return [("estimate", found.estimate), ("low", found.low), ("high", found.high)]


def _find(client: MlflowClient, experiment: str, trial: Trial) -> Run | None:
    runs = _runs(client, experiment, f"tags.`{TRIAL_TAG}` = '{trial.id}'")
    return min(runs, key=_sequence, default=None)


def _last(client: MlflowClient, experiment: str, service: str) -> Run | None:
    runs = _runs(client, experiment, f"tags.`{SERVICE_TAG}` = '{service}'")
    return max((run for run in runs if HASH_TAG in run.data.tags), key=_sequence, default=None)


def _runs(client: MlflowClient, experiment: str, where: str) -> list[Run]:
    found: list[Run] = []
    token: str | None = None
    while len(found) < _MAX_RUNS:
        page = client.search_runs([experiment], where, max_results=1000, page_token=token)
        found += page
        token = page.token
        if not token:
            break
    return found


def _sequence(run: Run) -> int:
    return int(run.data.tags[SEQUENCE_TAG])


def _read(client: MlflowClient, run: Run) -> AuditRecord:
    tags = run.data.tags
    with tempfile.TemporaryDirectory() as folder:
        text = Path(client.download_artifacts(run.info.run_id, RECORD, folder)).read_text(encoding="utf-8")
    body = json.loads(text)
    return AuditRecord(run.info.run_id, tags[TRIAL_TAG], _sequence(run), tags[HASH_TAG], body)
