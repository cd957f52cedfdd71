"""`seatrial env`"""

from __future__ import annotations

import json
import shlex
from typing import Annotated

import typer

from seatrial.cli.output import say
from seatrial.cli.where import HomeOption, addresses
from seatrial.stack.parts import loopback_environment


def command(
    home: HomeOption = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object instead of shell lines.")
    ] = False,
) -> None:
    """Print the shell lines that point plain ray and mlflow commands at the stack.

    Use it as `eval "$(seatrial env)"`. The token itself is not printed, only the path of its file.
    """
    found = addresses(home)
    values = found.environment()
    if found.ray_token_path is not None:
        values["RAY_AUTH_MODE"] = "token"
    if (found.ray_address or "").startswith("127."):
        values |= loopback_environment()  # a driver that joins must see the same node address as the head
    values["MLFLOW_DISABLE_TELEMETRY"] = "true"
    if as_json:
        say(json.dumps(values, indent=2))
        return
    for name, value in values.items():
        say(f"export {name}={shlex.quote(value)}")
