"""`seatrial trial status|report|start|stop`"""

from __future__ import annotations

import getpass
import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import typer

from seatrial.cli import promote
from seatrial.cli.output import pairs, say, table
from seatrial.cli.where import addresses
from seatrial.errors import UserError
from seatrial.experiments.trial import CHALLENGER, Stop, is_challenger
from seatrial.submission import controller
from seatrial.submission.plan import duration

app = typer.Typer(add_completion=False, rich_markup_mode=None, help="Look at trials, open them, end them.")
JsonOption = Annotated[bool, typer.Option("--json", help="Print the controller's own JSON.")]
ServiceArgument = Annotated[str, typer.Argument(help="Name of the service.", show_default=False)]


@app.command()
def status(
    service: Annotated[
        str | None,
        typer.Argument(help="Name of the service; all of them when not given.", show_default=False),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Show the trial that runs, or else the last one, in a few lines."""
    where = addresses()
    found = [controller.service(where, service)] if service else list(controller.status(where)["services"])
    if as_json:
        say(json.dumps(found[0] if service else found, indent=2))
    elif service:
        _show_service(found[0])
    else:
        table(("service", "trial", "units", "lift", "state"), [_line(each) for each in found])


@app.command()
def report(
    trial: Annotated[str, typer.Argument(help="Id of a trial, or a service's name for its last.")],
    as_json: JsonOption = False,
) -> None:
    """Show all that is known of one trial: arms, intervals, guardrails, forecast, policy."""
    found = controller.trial(addresses(), trial)
    if as_json:
        say(json.dumps(found, indent=2))
        return
    pairs(_lines(found))
    say()
    _arms(found)
    for arm in found["arms"]:
        rails = arm.get("guardrails") or []
        if rails:
            say()
            table(
                (f"guardrail of {arm['name']}", "value", "limit", "p", "state"),
                [_rail(each) for each in rails],
            )


@app.command()
def start(
    service: ServiceArgument,
    version: Annotated[str, typer.Argument(help="Number of the version in MLflow.", show_default=False)],
    alias: Annotated[
        str, typer.Option("--as", help="`challenger`; `challenger-b` and so on compare several at once.")
    ] = CHALLENGER,
) -> None:
    """Open a trial of a version against the champion, exactly as setting the alias in MLflow does."""
    if not is_challenger(alias):
        raise UserError(
            f"--as: {alias}: opens no trial: give challenger or challenger-b, or use `seatrial promote`"
        )
    promote.set_alias(service, version, alias)


@app.command()
def stop(
    service: ServiceArgument,
    reason: Annotated[str, typer.Option("--reason", help="Why; it is kept in the record.")],
) -> None:
    """End the service's running trial as inconclusive: the champion stays."""
    where = addresses()
    found = controller.service(where, service).get("trial")
    if found is None or found["state"] == "closed":
        raise UserError(f"SERVICE: {service}: no trial runs: see `seatrial trial status {service}`")
    if not reason.strip():
        raise UserError("--reason: empty: say in a few words why the trial ends")
    from seatrial.store import Store

    wish = Stop(f"{getpass.getuser()[:50]}, through the command line", " ".join(reason.split())[:500])
    if not Store(where.store_url).ask_stop(found["id"], wish):
        raise UserError(
            f"SERVICE: {service}: trial {found['id']} ends already: `seatrial trial report {service}`"
        )
    say(f"{found['id']}: ends as inconclusive; watch with: seatrial trial status {service}")


def _line(service: Mapping[str, Any]) -> tuple[str, ...]:
    trial = service.get("trial")
    if trial is None:
        return (str(service["name"]), "-", "-", "-", "no trial yet")
    return (
        str(service["name"]),
        str(trial["id"]),
        f"{trial['units']:,}",
        _estimate(trial["lift"], trial["interval"]),
        _state(trial),
    )


def _show_service(found: Mapping[str, Any]) -> None:
    pairs([("state", str(found["state"])), *_said(found), ("aliases", _aliases(found["aliases"]))])
    trial = found.get("trial")
    if trial is None:
        say(f"no trial yet: `seatrial trial start {found['name']} VERSION` opens one")
        return
    pairs(_lines(trial))
    _arms(trial)


def _said(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    refused = [(f"version {version}", f"refused: {why}") for version, why in found["refused"].items()]
    return [("message", str(found["message"]) or "-"), *refused]


def _aliases(aliases: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in sorted(aliases.items())) or "none"


def _lines(trial: Mapping[str, Any]) -> list[tuple[str, str]]:
    against = ", ".join(f"{alias} {version}" for alias, version in trial["challengers"].items())
    dropped = [(f"{alias}", f"dropped: {why}") for alias, why in trial["dropped"].items()]
    return [
        ("trial", f"{trial['id']}: {against} against champion {trial['champion']}"),
        *dropped,
        ("units", f"{trial['units']:,} ({trial['exposures']:,} exposures, {trial['outcomes']:,} outcomes)"),
        *_left_out(trial),
        ("metric", f"{trial['metric']} at alpha {trial['alpha']}, {trial['interval_kind']}"),
        ("difference", _estimate(trial["difference"], trial["difference_interval"])),
        ("relative lift", _estimate(trial["lift"], trial["interval"])),
        ("sample ratio p", "not known yet" if trial["srm_p"] is None else f"{trial['srm_p']:.3f}"),
        *_forecast(trial),
        ("verdict", _state(trial)),
    ]


def _left_out(trial: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Outcomes that count for no arm, and why."""
    reasons = (
        ("late_outcomes", "after the attribution window"),
        ("early_outcomes", "before their user's first request"),
        ("ignored_outcomes", "outside 0 to 1"),
    )
    said = [f"{trial[name]:,} {why}" for name, why in reasons if trial[name]]
    return [("left out", f"outcomes: {', '.join(said)}")] if said else []


def _forecast(trial: Mapping[str, Any]) -> list[tuple[str, str]]:
    expected, ramp = trial.get("expected"), trial.get("ramp")
    found = []
    if ramp and not trial["verdict"]:
        steps = " → ".join(f"{100 * step:g} %" for step in ramp["steps"])
        found.append(("ramp", f"{100 * ramp['share']:g} % of all traffic, of {steps}"))
    if expected:
        late = "" if expected["before_deadline"] else "; the deadline comes first"
        when = duration(expected["in_s"])
        found.append(("decides", f"in about {when}, at {expected['units']:,} units, if it goes on so{late}"))
    return found


def _state(trial: Mapping[str, Any]) -> str:
    verdict, reason = trial["verdict"], trial["reason"] or trial["waiting_for"]
    return f"{verdict}: {reason}" if verdict else f"open: {reason}"


def _estimate(value: float | None, interval: Sequence[float] | None) -> str:
    shown = f" in [{interval[0]:+.3f}, {interval[1]:+.3f}]" if interval else ""
    return "not known yet" if value is None else f"{value:+.3f}{shown}"


def _arms(trial: Mapping[str, Any]) -> None:
    counts = ("units", "requests", "exposures", "outcomes", "failures", "fallbacks")
    rows = []
    for arm in trial["arms"]:
        mean = "-" if arm["mean"] is None else f"{arm['mean']:.4f}"
        found = _estimate(arm["difference"], arm["difference_interval"]) if "difference" in arm else "-"
        rows.append(
            (str(arm["name"]), str(arm["version"]), *(f"{arm[name]:,}" for name in counts), mean, found)
        )
    table(("arm", "version", *counts, "mean", "difference"), rows)


def _rail(rail: Mapping[str, Any]) -> tuple[str, ...]:
    shown = ("-" if rail[name] is None else f"{rail[name]:.4g}" for name in ("value", "limit", "p"))
    state = "broken" if rail["breached"] else rail.get("silent") or "kept"
    return (str(rail["name"]), *shown, state)
