"""`seatrial delete`"""

from __future__ import annotations

import time
from typing import Annotated

import typer

from seatrial.cli.output import say
from seatrial.cli.where import addresses
from seatrial.submission import controller, removal


def command(
    service: Annotated[str, typer.Argument(help="Name of the service.", show_default=False)],
    wait: Annotated[
        bool, typer.Option("--wait/--no-wait", help="Wait until its engines have ended, or return at once.")
    ] = True,
    timeout_s: Annotated[float, typer.Option(min=1, help="Seconds to wait.")] = 300.0,
) -> None:
    """Take a service away: its endpoint, its engines, its configuration.

    An open trial ends as superseded. The registered model, its versions and aliases, the audit records and
    what was recorded of trials stay; deploying the service again goes on with them. No other service's
    address changes.
    """
    found = addresses()
    controller.status(found)  # without a controller nothing would happen
    removal.mark(service, found, now=time.time())
    say(f"{service}: marked for the controller to take away")
    if wait:
        removal.await_gone(service, found, timeout_s, say)
        say(f"{service}: deleted; deploy it again with `seatrial deploy`")
