"""`seatrial status`"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Annotated, Any

import typer

from seatrial.cli.output import say, table
from seatrial.cli.where import HomeOption, addresses
from seatrial.config.addresses import Addresses
from seatrial.errors import RetryableError
from seatrial.stack import status
from seatrial.stack.status import PartStatus
from seatrial.submission import controller


def command(
    home: HomeOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Show how each part and each service is, with the cause when something is wrong.

    Ends with exit code 1 when a part is not running or says that it is ill; a service that failed is shown,
    but is no part.
    """
    found = addresses(home)
    parts = status.read(found)
    services = _services(found, parts)
    if as_json:
        say(json.dumps({"parts": [asdict(part) for part in parts], "services": services}, indent=2))
    else:
        _show(parts, services)
    if any(part.health != "running" for part in parts):
        raise typer.Exit(1)


def _services(found: Addresses, parts: Sequence[PartStatus]) -> list[Mapping[str, Any]] | None:
    """What the controller says of each service; None when it cannot say."""
    if not any(part.name == "controller" and part.health in ("running", "ill") for part in parts):
        return None
    try:
        return list(controller.status(found)["services"])
    except RetryableError:
        return None  # the part's own cause says why


def _show(parts: Sequence[PartStatus], services: Sequence[Mapping[str, Any]] | None) -> None:
    table(
        ("part", "state", "address", "process"),
        [(part.name, part.health, part.url, str(part.pid or "-")) for part in parts],
    )
    for part in parts:
        if part.health != "running":
            log = f" (log: {part.log})" if part.log else ""
            say(f"{part.name}: {part.cause}{log}")
    if all(part.health == "away" for part in parts):
        say("Nothing answers: start a local stack with `seatrial up`, or set the addresses of a running one.")
        return
    say()
    if services is None:
        say("services: not known while the controller cannot say")
    elif not services:
        say("services: none deployed")
    else:
        table(("service", "state", "champion", "message"), [_row(service) for service in services])
        for service in services:
            for version, why in service["refused"].items():
                say(f"{service['name']}: version {version}: cannot be loaded: {why}")


def _row(service: Mapping[str, Any]) -> tuple[str, ...]:
    champion = service["champion"]
    return (
        str(service["name"]),
        str(service["state"]),
        "-" if champion is None else f"version {champion}",
        str(service["message"]) or "-",
    )
