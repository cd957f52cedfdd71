"""`seatrial trials`"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import typer

from seatrial.cli.output import pairs, say, table
from seatrial.cli.where import addresses
from seatrial.submission import controller

COUNTS = ("units", "requests", "exposures", "outcomes", "failures", "fallbacks")


def command(
    service: Annotated[str, typer.Argument(help="Name of the service.", show_default=False)],
    as_json: Annotated[bool, typer.Option("--json", help="Print the controller's own JSON.")] = False,
) -> None:
    """Show a service's trials.

    The trial that runs, or else the last one: its arms, the difference of their means, which decides, and the
    lift relative to the champion, both with their intervals, and the verdict or what it waits for.
    """
    found = controller.service(addresses(), service)
    if as_json:
        say(json.dumps(found, indent=2))
        return
    pairs([("state", str(found["state"])), *_said(found), ("aliases", _aliases(found["aliases"]))])
    trial = found.get("trial")
    if trial is None:
        say(f"no trial yet: `seatrial promote {service} VERSION` opens one")
        return
    pairs(_lines(trial))
    columns = (
        "arm",
        "version",
        "units",
        "requests",
        "exposures",
        "outcomes",
        "failures",
        "fallbacks",
        "mean",
    )
    table(columns, [_arm(arm) for arm in trial["arms"]])


def _said(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    refused = [(f"version {version}", f"refused: {why}") for version, why in found["refused"].items()]
    return [("message", str(found["message"]) or "-"), *refused]


def _aliases(aliases: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in sorted(aliases.items())) or "none"


def _lines(trial: Mapping[str, Any]) -> list[tuple[str, str]]:
    difference = _estimate(trial["difference"], trial["difference_interval"])
    lift = _estimate(trial["lift"], trial["interval"])
    srm_p = "not known yet" if trial["srm_p"] is None else f"{trial['srm_p']:.3f}"
    verdict, reason = trial["verdict"], trial["reason"] or trial["waiting_for"]
    return [
        ("trial", f"{trial['id']}: challenger {trial['challenger']} against champion {trial['champion']}"),
        ("units", f"{trial['units']:,} ({trial['exposures']:,} exposures, {trial['outcomes']:,} outcomes)"),
        ("metric", f"{trial['metric']} at alpha {trial['alpha']}"),
        ("difference", difference),
        ("relative lift", lift),
        ("sample ratio p", srm_p),
        ("verdict", f"{verdict}: {reason}" if verdict else f"open: {reason}"),
    ]


def _estimate(value: float | None, interval: Sequence[float] | None) -> str:
    shown = f" in [{interval[0]:+.3f}, {interval[1]:+.3f}]" if interval else ""
    return "not known yet" if value is None else f"{value:+.3f}{shown}"


def _arm(arm: Mapping[str, Any]) -> tuple[str, ...]:
    mean = "-" if arm["mean"] is None else f"{arm['mean']:.4f}"
    counts = (f"{arm[name]:,}" for name in COUNTS)
    return (str(arm["name"]), str(arm["version"]), *counts, mean)
