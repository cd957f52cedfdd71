"""The audit record of a trial: an MLflow run whose JSON is chained to the record before it by hash.

A run is made with its trial's tag in one request and gets its hash last. A crash in between leaves a run
without hash, which the next write completes. Two controllers that write at once may make two runs; each looks
again afterwards and keeps the same one.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import seatrial.experiments
from seatrial.errors import RetryableError
from seatrial.experiments.trial import CHAMPION, Decision, Look, Trial
from seatrial.registry import aliases
from seatrial.registry.client import ABSENT, NotRegisteredError, asking, connect, experiment_of

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

EXPERIMENT = "seatrial-audit"
RECORD = "record.json"
PLOT = "trial.png"
SERVICE_TAG = "seatrial.service"
TRIAL_TAG = "seatrial.trial"
SEQUENCE_TAG = "seatrial.sequence"
CREATED_TAG = "seatrial.created_ns"
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

    To be called when the aliases stand as the decision wants them: it notes who is champion then.

    Raises:
        RetryableError: the server refuses or does not answer; write again later.
    """
    client = connect(uri)
    with asking():
        experiment = experiment_of(client, EXPERIMENT)
        run = _only(client, experiment, trial)
        if run is None:
            _start(client, experiment, trial, decision)
            run = _only(client, experiment, trial)
        if run is None:
            raise RetryableError(
                f"MLflow: the run of {trial.id}'s record was taken away: it is written again"
            )
        if HASH_TAG not in run.data.tags:
            _fill(client, run, trial, decision, looks, _champion(trial.service, uri))
    return str(run.info.run_id)


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
        "champion_after": champion_after,
        "challenger": trial.challenger,
        "alpha": trial.policy["alpha"],
        "policy": dict(trial.policy),
        "table": trial.table.to_json(),
        "evidence": decision.evidence.to_json(),
        "judgement": decision.judgement.to_json(),
        "looks": [look.to_json() for look in looks],
        "code_digest": code_digest(),
    }


def _champion(service: str, uri: str | None) -> str | None:
    """Who is champion now: whatever was decided, a person may have moved the alias meanwhile."""
    try:
        return aliases.read(service, uri=uri).get(CHAMPION)
    except NotRegisteredError:
        return None


def _start(client: MlflowClient, experiment: str, trial: Trial, decision: Decision) -> None:
    last = _last(client, experiment, trial.service)
    tags = {
        SERVICE_TAG: trial.service,
        TRIAL_TAG: trial.id,
        SEQUENCE_TAG: str(_sequence(last) + 1 if last else 1),
        CREATED_TAG: str(time.time_ns()),
        PREVIOUS_TAG: last.data.tags[HASH_TAG] if last else FIRST,
        "seatrial.verdict": decision.verdict,
        "seatrial.actor": decision.actor,
        "mlflow.note.content": f"**{decision.verdict}** — {decision.reason}",
    }
    started = int(decision.decided_at * 1000)
    client.create_run(experiment, start_time=started, tags=tags, run_name=f"{trial.id} {decision.verdict}")


def _fill(
    client: MlflowClient,
    run: Run,
    trial: Trial,
    decision: Decision,
    looks: Sequence[Look],
    champion_after: str | None,
) -> None:
    from mlflow.entities import Metric

    from seatrial.registry.audit_plot import draw

    run_id = run.info.run_id
    tags = run.data.tags
    body = record_of(
        trial,
        decision,
        looks,
        sequence=int(tags[SEQUENCE_TAG]),
        previous_hash=tags[PREVIOUS_TAG],
        champion_after=champion_after,
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
    client.set_terminated(run_id, end_time=int(decision.decided_at * 1000))
    client.set_tag(run_id, HASH_TAG, digest(body))  # last: with it the record is whole


def _points(look: Look) -> list[tuple[str, float]]:
    found = look.judgement.difference
    return [("estimate", found.estimate), ("low", found.low), ("high", found.high)]


def _only(client: MlflowClient, experiment: str, trial: Trial) -> Run | None:
    """The run of the trial's record; of several, the finished one or else the oldest, and the others go."""
    from mlflow.exceptions import MlflowException

    runs = sorted(_runs(client, experiment, f"tags.`{TRIAL_TAG}` = '{trial.id}'"), key=_seniority)
    for run in runs[1:]:
        try:
            client.delete_run(run.info.run_id)
        except MlflowException as error:
            if error.error_code not in ABSENT:  # else somebody else was first
                raise
    return runs[0] if runs else None


def _seniority(run: Run) -> tuple[bool, int, str]:
    """The same order for everybody who looks."""
    tags = run.data.tags
    return HASH_TAG not in tags, int(tags.get(CREATED_TAG, 0)), str(run.info.run_id)


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
