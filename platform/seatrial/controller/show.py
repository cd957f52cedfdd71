"""How numbers, times and verdicts are written for people."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

VERDICTS = {
    "promote": ("promoted", "good"),
    "roll_back": ("rolled back", "bad"),
    "invalid": ("invalid", "bad"),
    "inconclusive": ("inconclusive", "open"),
    "superseded": ("superseded", "quiet"),
}


def count(value: float | None) -> str:
    """`12,345`, or a dash."""
    return "–" if value is None else f"{value:,.0f}"


def number(value: float | None, digits: int = 4) -> str:
    """Four significant digits, or a dash."""
    return "–" if value is None else f"{value:.{digits}g}"


def signed(value: float | None) -> str:
    """`+0.0312`, or a dash."""
    return "–" if value is None else f"{value:+.4g}"


def percent(value: float | None) -> str:
    """`+12.3 %` of a share, or a dash."""
    return "–" if value is None else f"{100 * value:+.1f} %"


def share(value: float | None) -> str:
    """`12.3 %`, or a dash."""
    return "–" if value is None else f"{100 * value:.3g} %"


def interval(value: Sequence[float] | None) -> str:
    """`−0.01 to +0.05`, or nothing."""
    return "" if value is None else f"{value[0]:+.4g} to {value[1]:+.4g}"


def percents(value: Sequence[float] | None) -> str:
    """The same of shares."""
    return "" if value is None else f"{100 * value[0]:+.1f} to {100 * value[1]:+.1f} %"


def when(seconds: float | None) -> str:
    """`2026-11-24 09:30:05 UTC`, or a dash."""
    if seconds is None:
        return "–"
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def lasting(seconds: float | None) -> str:
    """`45 s`, `12 min`, `5.2 h` or `3.1 days`."""
    if seconds is None:
        return "–"
    for size, unit, digits in ((86_400, "days", 1), (3_600, "h", 1), (60, "min", 0)):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.{digits}f} {unit}"
    return f"{max(0.0, seconds):.0f} s"


def verdict(trial: Mapping[str, Any]) -> str:
    """`promoted challenger`, `running`."""
    if trial["verdict"] is None:
        return "running" if trial["decided_at"] is None else "closing"
    said = VERDICTS[trial["verdict"]][0]
    return f"{said}: {trial['winner']}" if trial["winner"] and len(trial["challengers"]) > 1 else said


def tone(trial: Mapping[str, Any]) -> str:
    """The style of the verdict: good, bad, open, quiet, running."""
    return "running" if trial["verdict"] is None else VERDICTS[trial["verdict"]][1]


def quantile(values: Sequence[float], level: float) -> float | None:
    """The smallest value that at least ``level`` of them do not exceed; None of none."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(len(ordered) * level) - 1)] if ordered else None


FILTERS: dict[str, Callable[..., Any]] = {
    each.__name__: each
    for each in (
        count,
        number,
        signed,
        percent,
        share,
        interval,
        percents,
        when,
        lasting,
        verdict,
        tone,
        quantile,
    )
}
