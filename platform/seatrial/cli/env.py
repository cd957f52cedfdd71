"""`seatrial env`"""

from __future__ import annotations

import json
import os
import shlex
from typing import Annotated
from urllib.parse import urlsplit

import typer

from seatrial.cli.output import complain, say
from seatrial.cli.where import HomeOption, addresses
from seatrial.config.addresses import VARIABLES
from seatrial.monitoring.bearer import TOKEN_VARIABLE
from seatrial.monitoring.proxy import direct_loopback
from seatrial.stack.parts import STORE_VARIABLE, loopback_environment
from seatrial.stack.state import path_of


def command(
    home: HomeOption = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object instead of shell lines.")
    ] = False,
    secrets: Annotated[
        bool, typer.Option("--secrets", help="Print the store's address although it holds a password.")
    ] = False,
) -> None:
    """Print the shell lines that point plain ray and mlflow commands at the stack.

    Use it as `eval "$(seatrial env)"`. The token itself is not printed, only the path of its file, and the
    store's address only where it holds no password.
    """
    found = addresses(home)
    if not path_of(found.home).exists() and not any(os.environ.get(name) for name in VARIABLES.values()):
        complain(f"no stack is up in {found.home}: these are the defaults: `seatrial up` starts one")
    values = found.environment()
    is_withheld = holds_password(found.store_url) and not secrets
    if is_withheld:
        del values[STORE_VARIABLE]
        complain(f"{STORE_VARIABLE}: left out, since it holds a password: `seatrial env --secrets` prints it")
    if found.ray_token_path is not None:
        values["RAY_AUTH_MODE"] = "token"
    if (found.ray_address or "").startswith("127."):
        values |= loopback_environment()  # a driver that joins must see the same node address as the head
    values["MLFLOW_DISABLE_TELEMETRY"] = "true"
    values |= direct_loopback(os.environ)
    if as_json:
        say(json.dumps(values, indent=2))
        return
    for name, value in values.items():
        say(f"export {name}={shlex.quote(value)}")
    if found.ray_token_path is not None and os.environ.get(TOKEN_VARIABLE):
        say(f"unset {TOKEN_VARIABLE}")  # it would win over the file


def holds_password(url: str) -> bool:
    """Whether a database URL shows one, before its host or among its options."""
    parts = urlsplit(url)
    return parts.password is not None or "password=" in parts.query.lower()
