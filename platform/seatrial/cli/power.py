"""`seatrial power`"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Annotated, Any

import typer

from seatrial.cli.output import say, table
from seatrial.cli.where import addresses
from seatrial.errors import UserError
from seatrial.experiments.power import (
    Effect,
    Units,
    effect_of,
    fixed_units,
    planned_units,
    sequential_units,
)

LOOKS = 5
MOST = 1e15  # as for the values of outcomes
MOST_UNITS = 1e10
LEAST_ALPHA = 1e-9  # what lies below is lost in the integration


def command(
    service: Annotated[
        str | None,
        typer.Argument(help="Service whose alpha, split, minimum and traffic are taken.", show_default=False),
    ] = None,
    baseline: Annotated[
        float, typer.Option(help="The champion's mean, a share unless `--sd` is given.")
    ] = 0.5,
    lift: Annotated[float, typer.Option(help="Relative lift that is to be found: 0.1 is 10 %.")] = 0.1,
    alpha: Annotated[
        float | None,
        typer.Option(help="Probability of a wrong decision.", show_default="the service's, 0.05"),
    ] = None,
    power: Annotated[float, typer.Option(help="Probability to find the lift.")] = 0.8,
    split: Annotated[
        float | None,
        typer.Option(help="The challenger's share of the units.", show_default="the service's, 0.5"),
    ] = None,
    sd: Annotated[
        float | None,
        typer.Option(help="Standard deviation of a unit's value, for means.", show_default=False),
    ] = None,
    units_per_day: Annotated[
        float | None,
        typer.Option(help="Users a day, all of them.", show_default="those of the service's last trial"),
    ] = None,
) -> None:
    """Say how many units and days a trial takes to find a lift, however often one looks.

    On average, and at most: after so many units the lift has been found with the power asked for. Beside it
    are planned looks, and a test that may be looked at once.
    """
    policy, seen = _of_service(service) if service else ({}, None)
    alpha = alpha if alpha is not None else policy.get("alpha", 0.05)
    split = split if split is not None else policy.get("challenger_share", 0.5)
    _require_shares({"--alpha": alpha, "--power": power, "--split": split})
    _require_numbers({"--baseline": baseline, "--lift": lift}, {"--sd": sd, "--units-per-day": units_per_day})
    try:
        effect = effect_of(baseline, lift, split, sd)
        rows = _rows(effect, alpha, power, policy)
    except ValueError as error:
        raise UserError(f"--{error}") from error
    # What the last trial saw was without the held out and those of other namespaces already.
    everybody = units_per_day * _part(policy) if units_per_day else seen or 0.0
    daily = everybody * policy.get("coverage", 1.0)
    shown = "a mean" if sd is not None else "a share"
    say(f"a lift of {lift:+.1%} over {shown} of {baseline:g}")
    say(f"alpha {alpha:g}, power {power:g}, split {split:g}")
    table(
        ("test", "units on average", "units at most", "days on average", "days at most"),
        [(name, *_cells(units, daily)) for name, units in rows],
    )
    if not daily:
        say("days need traffic: give --units-per-day, or a service that has had a trial")


def _require_shares(given: Mapping[str, float]) -> None:
    for name, value in given.items():
        if not 0 < value < 1:
            raise UserError(f"{name}: {value:g}: give a share between 0 and 1")
    alpha, power = given["--alpha"], given["--power"]
    if not LEAST_ALPHA <= alpha < 0.5:
        raise UserError(f"--alpha: {alpha:g}: give a share from {LEAST_ALPHA:g} up to, not including, 0.5")
    if power <= alpha:
        raise UserError(f"--power: {power:g}: give more than alpha ({alpha:g})")


def _require_numbers(any_sign: Mapping[str, float], positive: Mapping[str, float | None]) -> None:
    for name, number in any_sign.items():
        if not abs(number) <= MOST:
            raise UserError(f"{name}: {number:g}: give a number from {-MOST:g} to {MOST:g}")
    for name, given in positive.items():
        if given is not None and not 0 < given <= MOST:
            raise UserError(f"{name}: {given:g}: give a number above 0, at most {MOST:g}")


def _rows(effect: Effect, alpha: float, power: float, policy: Mapping[str, Any]) -> list[tuple[str, Units]]:
    once = fixed_units(effect, alpha, power)
    if once > MOST_UNITS:
        raise ValueError(f"lift: takes {once:.1e} units even when looked at once: give a larger lift")
    minimum = policy.get("minimum_units") or min(200.0, once)
    tuning = policy.get("tuning_units") or policy.get("minimum_units") or once
    found = sequential_units(effect, alpha, power, tuning_n=tuning, minimum_units=minimum)
    rows = [("looked at all the time", found)]
    if policy and abs(tuning - once) > 0.2 * once:
        best = sequential_units(effect, alpha, power, tuning_n=once, minimum_units=minimum)
        rows.append((f"the same with tuning_units {once:.0f}", best))
    planned = planned_units(effect, alpha, power, "lan_demets_obrien_fleming", LOOKS)
    return [*rows, (f"{LOOKS} planned looks", planned), ("looked at once", Units(once, once))]


def _part(policy: Mapping[str, Any]) -> float:
    """The share of all users that may be in the service's trials."""
    namespace = policy.get("namespace") or {"start": 0.0, "end": 1.0}
    return float((1 - policy.get("holdout", 0.0)) * (namespace["end"] - namespace["start"]))


def _cells(units: Units, daily: float) -> tuple[str, ...]:
    counts = (units.expected, units.worst)
    days = tuple(f"{each / daily:.1f}" if daily else "-" for each in counts)
    return (*(f"{each:.0f}" for each in counts), *days)


def _of_service(name: str) -> tuple[Mapping[str, Any], float | None]:
    """The service's policy, and the units a day that it was last seen with."""
    from seatrial.store import Store

    store = Store(addresses().store_url)
    try:
        found = store.services().get(name)
        if found is None:
            known = ", ".join(store.services())
            fix = f"use one of {known}" if known else "none is deployed: leave it out"
            raise UserError(f"SERVICE: {name}: no such service: {fix}")
        return found["config"]["trial"], store.units_per_day(name, now=time.time())
    finally:
        store.close()
