"""A trial's judgement, recomputed from nothing but its audit record.

The judgement is compared field by field, whatever ended the trial. A person's wish and challengers that do
not load end a trial without it; then the verdict is what follows from that.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from seatrial.experiments.assignment import TrialTable
from seatrial.experiments.evidence import Evidence
from seatrial.experiments.trial import CHALLENGER, CHAMPION, Cause, Trial, look_at

# Another machine's mathematics may round the last digits differently.
RELATIVE, ABSOLUTE = 1e-9, 1e-12
_ABSENT = "(absent)"


@dataclass(frozen=True)
class Field:
    """One value of the record, and what it should be."""

    name: str
    recorded: Any
    recomputed: Any

    @property
    def agrees(self) -> bool:
        """Whether both say the same."""
        a, b = self.recorded, self.recomputed
        if {type(a), type(b)} <= {int, float} and float in (type(a), type(b)):
            return math.isclose(a, b, rel_tol=RELATIVE, abs_tol=ABSOLUTE)
        return type(a) is type(b) and bool(a == b)


@dataclass(frozen=True)
class Replay:
    """What came of it. ``obstacle`` says why nothing could be recomputed; then there are no fields."""

    cause: Cause | None
    fields: tuple[Field, ...] = ()
    obstacle: str | None = None

    @property
    def agrees(self) -> bool:
        """Whether every field does."""
        return self.obstacle is None and all(field.agrees for field in self.fields)


def replay(body: Mapping[str, Any]) -> Replay:
    """Recompute the judgement and the verdict of a record's JSON, of format 1 or 2."""
    try:
        return _replay(body)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, ArithmeticError) as error:
        return Replay(None, obstacle=f"the record cannot be read: {type(error).__name__}: {error}")


def _replay(body: Mapping[str, Any]) -> Replay:
    version = body["format"]
    if version not in (1, 2):
        return Replay(None, obstacle=f"format {version}: this version knows 1 and 2")
    cause = body.get("cause") or _cause_of(body)
    if version == 1 and (obstacle := _lost_challengers(body)):
        return Replay(cause, obstacle=obstacle)
    judgement = look_at(_trial(body), Evidence.from_json(body["evidence"]), body["decided_at"])
    recomputed = json.loads(json.dumps(judgement.to_json(), allow_nan=False))
    recorded = body["judgement"]
    if version == 1:  # what its judgement did not have yet is not compared
        recomputed = {name: value for name, value in recomputed.items() if name in recorded}
    fields = [
        Field("alpha", body["alpha"], body["policy"]["alpha"]),
        Field("verdict", body["verdict"], _verdict(cause, body, recomputed["verdict"])),
    ]
    if cause == "judgement":
        fields.append(Field("reason", body["reason"], recomputed["reason"]))
    found, wanted = (dict(_leaves(each, "judgement")) for each in (recorded, recomputed))
    names = dict.fromkeys([*found, *wanted])
    fields += [Field(name, found.get(name, _ABSENT), wanted.get(name, _ABSENT)) for name in names]
    return Replay(cause, tuple(fields))


def _trial(body: Mapping[str, Any]) -> Trial:
    table = TrialTable.from_json(body["table"])
    alone = {arm.name: arm.version for arm in table.arms if arm.name != CHAMPION}
    opened_at = body["opened_at"]
    return Trial(
        body["trial"], body["service"], 0, "open", table, body["policy"], body["champion_before"],
        body.get("challengers", alone), opened_at, body.get("ramped_at", opened_at),
        dropped=body.get("dropped", {}),
    )  # fmt: skip


def _lost_challengers(body: Mapping[str, Any]) -> str | None:
    """Why format 1 does not tell with how many challengers the trial began, on whom alpha depends."""
    here = [arm["name"] for arm in body["table"]["arms"] if arm["name"] != CHAMPION]
    judgements = [body["judgement"], *(look["judgement"] for look in body["looks"])]
    named = [each.get(name, {}) for each in judgements for name in ("arms", "drop")]
    exposed = [look["exposures"] for look in body["looks"]]
    seen = {*here}.union(*named, *exposed) - {CHAMPION}
    if here == [CHALLENGER] and seen == {CHALLENGER}:
        return None
    told = ", ".join(sorted(seen))
    return (
        f"format 1 does not keep with which challengers the trial began ({told} are seen): alpha is unknown"
    )


def _cause_of(body: Mapping[str, Any]) -> Cause:
    """What decided, of a record that does not say it."""
    if body["verdict"] == "superseded" or body["reason"].startswith("stopped: "):
        return "person"
    is_load = body["verdict"] == "roll_back" and body["judgement"]["verdict"] != "roll_back"
    return "load" if is_load else "judgement"


def _verdict(cause: Cause, body: Mapping[str, Any], judged: str | None) -> str | None:
    """The verdict that follows from what decided."""
    if cause == "load":
        return "roll_back"
    if cause == "judgement":
        return judged
    stop = body.get("stop")
    said = f"stopped: {stop['reason']}" if stop else "stopped: "
    is_stop = body["reason"] == said if stop else body["reason"].startswith(said)
    return "inconclusive" if is_stop else "superseded"


def _leaves(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Every value at the bottom of ``value``, by its path."""
    inner: Mapping[Any, Any] = {}
    if isinstance(value, Mapping):
        inner = value
    elif isinstance(value, list):
        inner = dict(enumerate(value))
    if not inner:
        yield path, value
    for key, each in inner.items():
        yield from _leaves(each, f"{path}.{key}")
