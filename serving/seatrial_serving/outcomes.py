"""`POST /v1/outcomes`: late metric values for answers that were given, or for those who got them."""

from __future__ import annotations

import re
import time
from typing import Any

from seatrial.store.writer import MOST_VALUE, outcome_row
from seatrial_serving.errors import HttpError
from seatrial_serving.limits import MAX_UNIT_CHARS, NO_TEXT
from seatrial_serving.recorder import Recorder
from seatrial_serving.request import REQUEST_ID, bare_request_id, encode

MOST_OUTCOMES = 1000
METRIC = re.compile(r"[a-z][a-z0-9_]{0,62}")
MOST_REASONS = 10
NAMES = ("id", "request_id", "unit")
FIELDS = {*NAMES, "metric", "value"}
MOST_SHOWN = 128


async def accept(body: dict[str, Any], service: str, recorder: Recorder, *, trial_id: str = "") -> bytes:
    """Record the outcomes of ``body``, on the disk when this returns, and say how many were taken.

    Of the others the answer has the index, what they were called by (`id`, `request_id`, `unit`), and the
    reason. ``trial_id`` is the trial that is open, in which a unit has one outcome of each metric.

    Raises:
        HttpError: 400 when none is right, 503 when they cannot be kept.
    """
    given = body.get("outcomes", [body]) if isinstance(body.get("outcomes", []), list) else []
    if not given or len(given) > MOST_OUTCOMES:
        raise HttpError(400, f"outcomes: give 1 to {MOST_OUTCOMES}", param="outcomes", code="invalid_value")
    now = time.time()
    rows, rejected = [], []
    for index, item in enumerate(given):
        try:
            rows.append(_row(item, service, trial_id, now))
        except ValueError as error:
            rejected.append({"index": index, **_named(item), "reason": str(error)})
    if not rows:
        beside = {"accepted": 0, "rejected": rejected}
        raise HttpError(400, _reasons(rejected), param="outcomes", code="invalid_value", beside=beside)
    try:
        await recorder.outcomes(rows)
    except OSError as error:
        raise HttpError(503, "outcomes cannot be kept now: send them again later", code="no_space") from error
    return encode({"accepted": len(rows), "rejected": rejected})


def _named(item: object) -> dict[str, str]:
    """What a client knows its outcome by, as far as it is text."""
    given = item if isinstance(item, dict) else {}
    return {name: given[name][:MOST_SHOWN] for name in NAMES if isinstance(given.get(name), str)}


def _reasons(rejected: list[dict[str, Any]]) -> str:
    reasons = [f"outcomes[{each['index']}]: {each['reason']}" for each in rejected[:MOST_REASONS]]
    left = len(rejected) - len(reasons)
    return "; ".join([*reasons, f"and {left} more"] if left else reasons)


def _row(item: object, service: str, trial_id: str, now: float) -> dict[str, Any]:
    if not isinstance(item, dict):
        raise ValueError("an outcome is an object with request_id or unit, metric and value")
    unknown = item.keys() - FIELDS
    if unknown:
        raise ValueError(f"{min(unknown)}: unknown field: remove it")
    metric, value = item.get("metric"), item.get("value")
    request_id, unit = _whose(item)
    if not isinstance(metric, str) or not METRIC.fullmatch(metric):
        raise ValueError(f"metric: {str(metric)[:60]!r}: give a name such as resolved")
    if isinstance(value, bool):
        value = float(value)  # thumbs up or down
    if not isinstance(value, int | float) or not abs(value) <= MOST_VALUE:
        raise ValueError(f"value: {str(value)[:60]!r}: give a number from {-MOST_VALUE:g} to {MOST_VALUE:g}")
    client_id = item.get("id")
    if client_id is not None and not (isinstance(client_id, str) and 1 <= len(client_id) <= 128):
        raise ValueError("id: give text of at most 128 characters")
    return outcome_row(
        service,
        request_id,
        metric,
        float(value),
        now=now,
        client_id=client_id,
        unit=unit,
        trial_id=trial_id,
    )


def _whose(item: dict[str, Any]) -> tuple[str | None, str | None]:
    """The request's id, or the unit."""
    request_id, unit = item.get("request_id"), item.get("unit")
    if unit is None:
        bare = bare_request_id(request_id) if isinstance(request_id, str) else ""
        if not REQUEST_ID.fullmatch(bare):
            raise ValueError("request_id: give the answer's X-Seatrial-Request-Id, or its `id`")
        return bare, None
    if request_id is not None:
        raise ValueError("request_id, unit: give one of the two")
    if not isinstance(unit, str) or not 1 <= len(unit) <= MAX_UNIT_CHARS or NO_TEXT.search(unit):
        raise ValueError(
            f"unit: {str(unit)[:60]!r}: give 1 to {MAX_UNIT_CHARS} characters, no control characters"
        )
    return None, unit
