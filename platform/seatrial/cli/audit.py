"""`seatrial audit`"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Annotated, Any

import typer

from seatrial.cli.output import pairs, say, table
from seatrial.cli.where import addresses
from seatrial.config.addresses import Addresses
from seatrial.errors import SeatrialError, UserError
from seatrial.experiments.evidence import Evidence
from seatrial.experiments.record import MOVE_MARK, Anchor, service_of
from seatrial.experiments.replay import Replay, replay
from seatrial.registry import audit

COLUMNS = (
    "number", "trial", "when", "champion", "verdict", "units", "difference", "acted", "hash",
)  # fmt: skip
NAME = re.compile(r"[a-z0-9][a-z0-9-]*")
UNREADABLE = (KeyError, TypeError, ValueError, AttributeError, OverflowError, OSError)


def command(
    service: Annotated[str | None, typer.Argument(help="Name of the service.", show_default=False)] = None,
    replay_id: Annotated[
        str | None,
        typer.Option("--replay", help="Id of a record: recompute the trial's judgement.", show_default=False),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the records, or the fields, as JSON.")
    ] = False,
) -> None:
    """List a service's decisions, and recompute one from its record.

    The list also says whether the records are those that were written: every hash, the chain, and the hashes
    that the store keeps. Exit code 1 when something does not hold, or a recomputed field does not agree. Of a
    champion that was moved by hand there is nothing to recompute: its record is shown and its hash checked.
    """
    if (service is None) == (replay_id is None):
        raise UserError("SERVICE, --replay: give one of the two")
    name = service or replay_id or ""
    if not NAME.fullmatch(name):
        raise UserError(f"{'SERVICE' if service else '--replay'}: {name}: no such name: use a-z, 0-9 and -")
    problems = _list(name, as_json) if service else _replay(name, as_json)
    if problems:
        raise SeatrialError("\n".join(problems))


def _list(service: str, as_json: bool) -> list[str]:
    """Print the chain; what is wrong with it."""
    where = addresses()
    history = audit.history(service, uri=where.mlflow_uri)
    anchors, trials, is_deployed = _kept(where, service)
    if not (history.records or history.hidden or anchors or trials or is_deployed):
        raise UserError(f"SERVICE: {service}: no such service, and no records of one")
    problems = audit.verify_history(history, anchors, trials)
    kept = {anchor.key for anchor in anchors}
    if as_json:
        records = [{**asdict(record), "anchored": record.key in kept} for record in history.records]
        say(json.dumps({"service": service, "records": records, "problems": problems}, indent=2))
        return problems
    table(COLUMNS, [_row(record) for record in history.records])
    if not problems:
        old = sum(record.key not in kept for record in history.records)
        said = f"; {old} from before the store kept hashes" if old else ""
        count = len(history.records)
        say(f"{service}: {count} record{'s' * (count != 1)}: hashes, chain and store agree{said}")
    return problems


def _kept(where: Addresses, service: str) -> tuple[list[Anchor], dict[str, str], bool]:
    """What the store has: anchors, trials with their states, and whether the service is deployed."""
    from seatrial.store import Store

    store = Store(where.store_url)
    try:
        return store.anchors(service), store.trial_states(service), service in store.services()
    finally:
        store.close()


def _row(record: audit.AuditRecord) -> tuple[str, ...]:
    body = record.body
    units, difference = _measured(body)
    return (
        str(record.sequence),
        record.key,
        _when(body.get("decided_at")),
        _moved(body),
        str(body.get("verdict", "unreadable")),
        units,
        difference,
        str(body.get("actor", "-")),
        record.hash[:12],
    )


def _moved(body: Mapping[str, Any]) -> str:
    return f"{body.get('champion_before') or '-'} → {body.get('champion_after') or '-'}"


def _measured(body: Mapping[str, Any]) -> tuple[str, str]:
    """Units, and the estimate with its interval; a record that a hand has changed may have neither."""
    try:
        units = f"{Evidence.from_json(body['evidence']).units:,}"
        found = body["judgement"]["difference"]
        if None in (found["estimate"], found["low"], found["high"]):
            return units, "-"
        return units, f"{found['estimate']:+.4f} in [{found['low']:+.4f}, {found['high']:+.4f}]"
    except UNREADABLE:
        return "-", "-"


def _when(at: Any) -> str:
    try:
        return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M:%S")
    except UNREADABLE:
        return "-"


def _replay(key: str, as_json: bool) -> list[str]:
    """Print what the record's replay comes to; what does not hold or agree."""
    where = addresses()
    record = audit.find(key, uri=where.mlflow_uri)
    if record is None:
        raise UserError(f"--replay: {key}: no such record: `seatrial audit SERVICE` lists them")
    problems = _changed(record, where)
    return (
        _tell_move(record, problems, as_json) if MOVE_MARK in key else _recompute(record, problems, as_json)
    )


def _tell_move(record: audit.AuditRecord, problems: list[str], as_json: bool) -> list[str]:
    """Print what the record of a champion moved by hand says: nobody judged, so nothing is recomputed."""
    if record.trouble:
        return [*problems, f"{record.key}: {record.trouble}"]
    said = "a champion moved by hand: no judgement, so nothing to recompute"
    body = record.body
    if as_json:
        told = {name: body.get(name) for name in ("champion_before", "champion_after", "actor", "decided_at")}
        found = {"record": record.key, "kind": said, **told, "holds": not problems, "problems": problems}
        say(json.dumps(found, indent=2))
        return problems
    pairs(
        [
            ("record", f"{record.key}: {said}"),
            ("champion", _moved(body)),
            ("by", f"{body.get('actor', '-')}, {_when(body.get('decided_at'))}"),
            ("hash", "holds" if not problems else "does not hold"),
        ]
    )
    return problems


def _recompute(record: audit.AuditRecord, problems: list[str], as_json: bool) -> list[str]:
    """Print the recomputed fields of a trial's record; what does not agree, after ``problems``."""
    trial_id, problems = record.key, list(problems)
    found = Replay(None, obstacle=record.trouble) if record.trouble else replay(record.body)
    if found.obstacle is not None:
        problems.append(f"{trial_id}: cannot be recomputed: {found.obstacle}")
    problems += [
        f"{trial_id}: {field.name}: recorded {_shown(field.recorded)}, recomputed {_shown(field.recomputed)}"
        for field in found.fields
        if not field.agrees
    ]
    code = record.body.get("code_digest"), audit.code_digest()
    if as_json:
        fields = [{**asdict(field), "agrees": field.agrees} for field in found.fields]
        said = {"trial": trial_id, "agrees": not problems, "cause": found.cause, "obstacle": found.obstacle}
        codes = {"code_digest": {"then": code[0], "now": code[1]}}
        say(json.dumps({**said, **codes, "fields": fields, "problems": problems}, indent=2))
        return problems
    table(
        ("field", "recorded", "recomputed", ""),
        [
            (
                each.name,
                _shown(each.recorded),
                _shown(each.recomputed),
                "agrees" if each.agrees else "DIFFERS",
            )
            for each in found.fields
        ],
    )
    same = "the same" if code[0] == code[1] else "another"
    pairs(
        [
            ("decided by", {"person": "a person", "load": "versions that do not load"}.get(
                str(found.cause), "the judgement")),
            ("code then", str(code[0])[:12]),
            ("code now", f"{code[1][:12]} ({same})"),
            ("replay", "agrees" if not problems else "does not agree"),
        ]
    )  # fmt: skip
    return problems


def _changed(record: audit.AuditRecord, where: Addresses) -> list[str]:
    """Whether the record is the one that was written."""
    if record.trouble is None and audit.digest(record.body) != record.hash:
        return [f"{record.key}: its record was changed: its hash is not {record.hash[:12]}"]
    anchors, _, _ = _kept(where, service_of(record.key))
    kept = next((anchor.hash for anchor in anchors if anchor.key == record.key), record.hash)
    if kept != record.hash:
        return [f"{record.key}: was rewritten: the store keeps the hash {kept[:12]}, not {record.hash[:12]}"]
    return []


def _shown(value: Any) -> str:
    return f"{value:.10g}" if isinstance(value, float) else str(value)
