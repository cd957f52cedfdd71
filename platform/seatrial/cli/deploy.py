"""`seatrial deploy`"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from seatrial.cli.output import say
from seatrial.cli.where import addresses
from seatrial.submission import deploy
from seatrial.submission.recipes import load_service


def command(
    service: Annotated[Path, typer.Argument(help="Service file (YAML).", show_default=False)],
    wait: Annotated[
        bool, typer.Option("--wait/--no-wait", help="Wait until the engine is up, or return at once.")
    ] = True,
    timeout_s: Annotated[float, typer.Option(min=1, help="Seconds to wait for the engine.")] = 900.0,
) -> None:
    """Deploy a service, or change the one that runs.

    The file is checked, MLflow and the base model are looked for, and only then is the service written down
    for the controller, which starts the engine. Nothing is deployed when a check fails.
    """
    config = load_service(service)
    found = addresses()
    deploy.check(config, found, service)
    row = deploy.put(config, found, now=time.time())
    base = row["config"]["engine"]["base"]
    if base != config.engine.base:
        say(f"{config.name}: engine.base: {config.engine.base} is pinned to {base}")
    say(f"{config.name}: written down for the controller")
    if not wait:
        return
    status = deploy.await_ready(config.name, row["updated_at"], found, timeout_s, say)
    if status["champion"] is None:
        say(f"next: seatrial promote {config.name} VERSION --as champion")
    say(deploy.curl_line(config, f"{found.serve_url}{row['route_prefix']}".rstrip("/")))
