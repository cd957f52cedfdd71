"""`seatrial promote`"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from seatrial.cli.output import say
from seatrial.cli.where import addresses
from seatrial.errors import UserError
from seatrial.registry import aliases, versions


class Alias(StrEnum):
    """What a version can be made by hand."""

    CHALLENGER = "challenger"
    CHAMPION = "champion"


def command(
    service: Annotated[str, typer.Argument(help="Name of the service.", show_default=False)],
    version: Annotated[str, typer.Argument(help="Number of the version in MLflow.", show_default=False)],
    alias: Annotated[
        Alias,
        typer.Option(
            "--as",
            help="`challenger` opens a trial against the champion; `champion` replaces it without one.",
        ),
    ] = Alias.CHALLENGER,
) -> None:
    """Set an alias of a service to a version.

    Nothing else happens here, exactly as in the MLflow UI: the controller sees the alias and does the rest.
    """
    if not version.isdecimal():
        raise UserError(f"VERSION: {version}: no number: give one that MLflow shows, such as 2")
    uri = addresses().mlflow_uri
    before = aliases.read(service, uri=uri)
    record = versions.describe(service, version, uri=uri)
    if not record.tags.get("seatrial.digest"):
        raise UserError(
            f"VERSION: {version}: has no manifest (`seatrial.digest` tag): register it with a Seatrial job"
        )
    if alias is Alias.CHALLENGER and "champion" not in before:
        raise UserError(f"--as: challenger: {service} has no champion to try it against: use `--as champion`")
    if alias is Alias.CHALLENGER and before["champion"] == version:
        raise UserError(f"VERSION: {version}: is the champion of {service} already: give another version")
    aliases.move(service, alias.value, version, expected=before.get(alias.value), uri=uri)
    was = before.get(alias.value)
    say(f"{service}@{alias.value}: version {version}" + (f" (was {was})" if was else ""))
    say(f"watch with: seatrial trials {service}")
