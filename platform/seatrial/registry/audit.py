"""The audit records of a service: MLflow runs whose JSON is chained to the record before it by hash.

A run is made with its record's key in one request and gets its hash last. A crash in between leaves a run
without hash, which the next write completes. Two controllers that write at once may make two runs; each looks
again afterwards and keeps the same one.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from seatrial.errors import RetryableError
from seatrial.experiments.record import MOVE_MARK, ChampionMove
from seatrial.experiments.trial import CHAMPION, Decision, Look, Trial
from seatrial.registry import aliases
from seatrial.registry.audit_record import (
    FIRST,
    MOVE,
    AuditRecord,
    History,
    code_digest,
    digest,
    move_record,
    record_of,
    verify_chain,
    verify_history,
)
from seatrial.registry.client import ABSENT, NotRegisteredError, asking, connect, experiment_of

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

__all__ = [
    "AuditRecord", "History", "chain", "code_digest", "digest", "find", "history", "record_of",
    "verify_chain", "verify_history", "write", "write_move",
]  # fmt: skip

EXPERIMENT = "seatrial-audit"
RECORD = "record.json"
PLOT = "trial.png"
SERVICE_TAG = "seatrial.service"
TRIAL_TAG = "seatrial.trial"
MOVE_TAG = "seatrial.move"
BEFORE_TAG = "seatrial.champion_before"
AFTER_TAG = "seatrial.champion_after"
SEQUENCE_TAG = "seatrial.sequence"
CREATED_TAG = "seatrial.created_ns"
PREVIOUS_TAG = "seatrial.previous_hash"
HASH_TAG = "seatrial.record_hash"
_MAX_RUNS = 10_000


@dataclass(frozen=True)
class _Entry:
    """One record to be written: the tag that names it, its run, and what fills the run.

    ``body`` makes the JSON from the tags of the run, which stand since it was made. ``attach`` adds what goes
    with it.
    """

    service: str
    tag: str
    key: str
    verdict: str
    reason: str
    actor: str
    at: float
    body: Callable[[Mapping[str, str]], dict[str, Any]]
    attach: Callable[[MlflowClient, str], None]
    tags: Mapping[str, str]


def write(trial: Trial, decision: Decision, looks: Sequence[Look], *, uri: str | None = None) -> AuditRecord:
    """Write the trial's record unless it is there; the record as it stands.

    To be called when the aliases stand as the decision wants them: it notes who is champion then.

    Raises:
        RetryableError: the server refuses or does not answer; write again later.
    """

    def body(tags: Mapping[str, str]) -> dict[str, Any]:
        champion = _champion(trial.service, uri)
        return record_of(trial, decision, looks, **_links(tags), champion_after=champion)

    def attach(client: MlflowClient, run_id: str) -> None:
        _attach(client, run_id, trial, decision, looks)

    entry = _Entry(
        trial.service, TRIAL_TAG, trial.id, decision.verdict, decision.reason, decision.actor,
        decision.decided_at, body, attach, {},
    )  # fmt: skip
    return _write(entry, uri)


def write_move(move: ChampionMove, *, uri: str | None = None) -> AuditRecord:
    """Write the record of a champion moved by hand unless one with its key is there; that record.

    Raises:
        RetryableError: the server refuses or does not answer; write again later.
    """

    def body(tags: Mapping[str, str]) -> dict[str, Any]:
        begun = replace(move, before=tags[BEFORE_TAG], after=tags[AFTER_TAG])
        return move_record(begun, int(tags[CREATED_TAG]) / 1e9, **_links(tags))

    entry = _Entry(
        move.service, MOVE_TAG, move.key, MOVE, f"champion moved from {move.before} to {move.after}",
        move.actor, time.time(), body, lambda *_: None, {BEFORE_TAG: move.before, AFTER_TAG: move.after},
    )  # fmt: skip
    return _write(entry, uri)


def history(service: str, *, uri: str | None = None) -> History:
    """All that MLflow has of the service's records, its deleted runs included.

    Raises:
        RetryableError: the server does not answer.
    """
    from mlflow.entities import ViewType

    client = connect(uri)
    with asking():
        experiment = client.get_experiment_by_name(EXPERIMENT)
        if experiment is None:
            return History((), {})
        where = f"tags.`{SERVICE_TAG}` = '{service}'"
        found = sorted(_runs(client, experiment.experiment_id, where, ViewType.ALL), key=_sequence)
        whole = [run for run in found if _is_whole(run)]
        records = tuple(_read(client, run) for run in whole)
    hidden = {_key(run): _hidden(run) for run in found if run not in whole}
    return History(records, hidden)


def chain(service: str, *, uri: str | None = None) -> list[AuditRecord]:
    """The service's finished records, oldest first.

    Raises:
        RetryableError: the server does not answer.
    """
    return list(history(service, uri=uri).records)


def find(key: str, *, uri: str | None = None) -> AuditRecord | None:
    """The finished record of one trial, by its id, or of a move by hand, by its key.

    Raises:
        RetryableError: the server does not answer.
    """
    client = connect(uri)
    with asking():
        experiment = client.get_experiment_by_name(EXPERIMENT)
        if experiment is None:
            return None
        tag = MOVE_TAG if MOVE_MARK in key else TRIAL_TAG
        runs = _runs(client, experiment.experiment_id, f"tags.`{tag}` = '{key}'")
        return next((_read(client, run) for run in runs if HASH_TAG in run.data.tags), None)


def _write(entry: _Entry, uri: str | None) -> AuditRecord:
    client = connect(uri)
    with asking():
        experiment = experiment_of(client, EXPERIMENT)
        run = _only(client, experiment, entry)
        if run is None:
            _start(client, experiment, entry)
            run = _only(client, experiment, entry)
        if run is None:
            raise RetryableError(
                f"MLflow: the run of {entry.key}'s record was taken away: it is written again"
            )
        return _read(client, run) if HASH_TAG in run.data.tags else _fill(client, run, entry)


def _champion(service: str, uri: str | None) -> str | None:
    """Who is champion now: whatever was decided, a person may have moved the alias meanwhile."""
    try:
        return aliases.read(service, uri=uri).get(CHAMPION)
    except NotRegisteredError:
        return None


def _start(client: MlflowClient, experiment: str, entry: _Entry) -> None:
    last = _last(client, experiment, entry.service)
    tags = {
        SERVICE_TAG: entry.service,
        entry.tag: entry.key,
        SEQUENCE_TAG: str(_sequence(last) + 1 if last else 1),
        CREATED_TAG: str(time.time_ns()),
        PREVIOUS_TAG: last.data.tags[HASH_TAG] if last else FIRST,
        "seatrial.verdict": entry.verdict,
        "seatrial.actor": entry.actor,
        "mlflow.note.content": f"**{entry.verdict}** — {entry.reason}",
        **entry.tags,
    }
    name = f"{entry.key} {entry.verdict}"
    client.create_run(experiment, start_time=int(entry.at * 1000), tags=tags, run_name=name)


def _fill(client: MlflowClient, run: Run, entry: _Entry) -> AuditRecord:
    run_id = str(run.info.run_id)
    body = entry.body(run.data.tags)
    client.log_dict(run_id, body, RECORD)
    entry.attach(client, run_id)
    client.set_terminated(run_id, end_time=int(entry.at * 1000))
    total = digest(body)
    client.set_tag(run_id, HASH_TAG, total)  # last: with it the record is whole
    return AuditRecord(run_id, entry.key, body["sequence"], total, body)


def _links(tags: Mapping[str, str]) -> dict[str, Any]:
    return {"sequence": int(tags[SEQUENCE_TAG]), "previous_hash": tags[PREVIOUS_TAG]}


def _attach(
    client: MlflowClient, run_id: str, trial: Trial, decision: Decision, looks: Sequence[Look]
) -> None:
    """The trial's picture, and its interval as metrics."""
    from mlflow.entities import Metric

    from seatrial.registry.audit_plot import ONE_AT_A_TIME, draw

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, PLOT)
        with ONE_AT_A_TIME:
            draw(trial, decision, looks).savefig(path)
        client.log_artifact(run_id, str(path))
    metrics = [
        Metric(f"difference/{name}", value, int(look.at * 1000), look.units)
        for look in looks
        if look.judgement.difference.is_defined
        for name, value in _points(look)
    ]
    for start in range(0, len(metrics), 900):  # MLflow takes at most 1,000 in one request
        client.log_batch(run_id, metrics=metrics[start : start + 900])


def _points(look: Look) -> list[tuple[str, float]]:
    found = look.judgement.difference
    return [("estimate", found.estimate), ("low", found.low), ("high", found.high)]


def _only(client: MlflowClient, experiment: str, entry: _Entry) -> Run | None:
    """The run of the record; of several, the finished one or else the oldest, and the others go."""
    from mlflow.exceptions import MlflowException

    runs = sorted(_runs(client, experiment, f"tags.`{entry.tag}` = '{entry.key}'"), key=_seniority)
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


def _runs(client: MlflowClient, experiment: str, where: str, view: int = 1) -> list[Run]:
    """The runs that fit; ``view`` is MLflow's ViewType, by default those that are not deleted."""
    found: list[Run] = []
    token: str | None = None
    while len(found) < _MAX_RUNS:
        page = client.search_runs([experiment], where, view, max_results=1000, page_token=token)
        found += page
        token = page.token
        if not token:
            break
    return found


def _is_whole(run: Run) -> bool:
    return HASH_TAG in run.data.tags and run.info.lifecycle_stage == "active"


def _hidden(run: Run) -> str:
    run_id = run.info.run_id
    if run.info.lifecycle_stage != "active":
        return f"its run {run_id} was deleted: restore it with `mlflow runs restore --run-id {run_id}`"
    return f"its run {run_id} has no tag {HASH_TAG}: the tag was removed, or the record is not whole yet"


def _key(run: Run) -> str:
    tags = run.data.tags
    return str(tags.get(TRIAL_TAG) or tags.get(MOVE_TAG) or run.info.run_id)


def _sequence(run: Run) -> int:
    found = run.data.tags.get(SEQUENCE_TAG, "")
    return int(found) if found.isdecimal() else 0


def _read(client: MlflowClient, run: Run) -> AuditRecord:
    """The record of a run; what a hand has made of its file is told, not raised."""
    from mlflow.exceptions import MlflowException

    found = run.info.run_id, _key(run), _sequence(run), run.data.tags[HASH_TAG]
    with tempfile.TemporaryDirectory() as folder:
        try:
            if not any(item.path == RECORD for item in client.list_artifacts(run.info.run_id)):
                return AuditRecord(*found, {}, f"its run {found[0]} has no {RECORD} any more")
            path = Path(client.download_artifacts(run.info.run_id, RECORD, folder))
            body = json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse)
            if not isinstance(body, dict):
                raise ValueError("no JSON object")
        except ValueError as error:
            if isinstance(error, MlflowException):
                raise
            return AuditRecord(*found, {}, f"its {RECORD} cannot be read ({error}): it was changed")
    return AuditRecord(*found, body)


def _refuse(text: str) -> float:
    raise ValueError(f"{text} is no JSON")
