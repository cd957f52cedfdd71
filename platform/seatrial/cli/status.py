"""`seatrial status`"""

from __future__ import annotations

import typer

from seatrial.cli.output import say, table
from seatrial.cli.where import HomeOption, addresses
from seatrial.stack import status


def command(home: HomeOption = None) -> None:
    """Show how each part is, with the cause when something is wrong.

    Ends with exit code 1 when a part is not running.
    """
    parts = status.read(addresses(home))
    table(
        ("part", "state", "address", "process"),
        [(part.name, part.health, part.url, str(part.pid or "-")) for part in parts],
    )
    troubled = [part for part in parts if part.health != "running"]
    for part in troubled:
        log = f" (log: {part.log})" if part.log else ""
        say(f"{part.name}: {part.cause}{log}")
    if len(troubled) == len(parts) and all(part.health == "away" for part in troubled):
        say("Nothing answers: start a local stack with `seatrial up`, or set the addresses of a running one.")
    if troubled:
        raise typer.Exit(1)
