"""`seatrial promote`"""

from __future__ import annotations

import re
from typing import Annotated

import typer

from seatrial.cli.output import say
from seatrial.cli.where import addresses
from seatrial.errors import UserError
from seatrial.experiments.trial import CHALLENGER, CHAMPION, SHADOW
from seatrial.registry import aliases, versions

ALIAS = re.compile(r"challenger(-[a-z0-9][a-z0-9-]{0,30})?")


def command(
    service: Annotated[str, typer.Argument(help="Name of the service.", show_default=False)],
    version: Annotated[str, typer.Argument(help="Number of the version in MLflow.", show_default=False)],
    alias: Annotated[
        str,
        typer.Option(
            "--as",
            help="`challenger` opens a trial against the champion, `challenger-b` and so on beside it; "
            "`champion` replaces it without one; `shadow` sees a copy of the traffic.",
        ),
    ] = CHALLENGER,
) -> None:
    """Set an alias of a service to a version.

    Nothing else happens here, exactly as in the MLflow UI: the controller sees the alias and does the rest.
    """
    set_alias(service, version, alias)


def set_alias(service: str, version: str, alias: str) -> None:
    """Point the alias at the version, and say how to watch what follows.

    Raises:
        UserError: no such version, one without a manifest, or an alias that means nothing here.
    """
    if alias not in (CHAMPION, SHADOW) and not ALIAS.fullmatch(alias):
        raise UserError(f"--as: {alias}: give challenger, challenger-b, champion or shadow")
    if not version.isdecimal():
        raise UserError(f"VERSION: {version}: no number: give one that MLflow shows, such as 2")
    uri = addresses().mlflow_uri
    before = aliases.read(service, uri=uri)
    record = versions.describe(service, version, uri=uri)
    if not record.tags.get("seatrial.digest"):
        raise UserError(
            f"VERSION: {version}: has no manifest (`seatrial.digest` tag): register it with a Seatrial job"
        )
    if alias != CHAMPION and CHAMPION not in before:
        raise UserError(f"--as: {alias}: {service} has no champion to try it against: use `--as champion`")
    if alias != CHAMPION and before[CHAMPION] == version:
        raise UserError(f"VERSION: {version}: is the champion of {service} already: give another version")
    was = before.get(alias)
    aliases.move(service, alias, version, expected=was, uri=uri)
    say(f"{service}@{alias}: version {version}" + (f" (was {was})" if was else ""))
    say(f"watch with: seatrial trial status {service}")
