"""`seatrial up`"""

from __future__ import annotations

import time
from typing import Annotated

import typer

from seatrial.cli.output import complain, pairs, say
from seatrial.cli.where import HomeOption, home_of_new
from seatrial.errors import SeatrialError, UserError
from seatrial.stack import launch, status
from seatrial.stack.ports import Ports
from seatrial.stack.state import State

SETTLE_S = 5.0  # some passes of the controller
POLL_S = 0.5


def command(
    home: HomeOption = None,
    ray_cpus: Annotated[
        int,
        typer.Option(
            min=1, help="Logical CPUs that Ray may hand out to workers and replicas; may exceed the cores."
        ),
    ] = 8,
    mlflow_port: Annotated[
        int, typer.Option(min=1, max=65535, help="Port of the MLflow server.")
    ] = Ports.mlflow,
    dashboard_port: Annotated[
        int, typer.Option(min=1, max=65535, help="Port of Ray's dashboard and its Jobs API.")
    ] = Ports.dashboard,
    ray_port: Annotated[
        int, typer.Option(min=1, max=65535, help="Port of the Ray head that drivers join.")
    ] = Ports.ray,
    serve_port: Annotated[
        int, typer.Option(min=1, max=65535, help="Port on which the services will answer.")
    ] = Ports.serve,
    controller_port: Annotated[
        int, typer.Option(min=1, max=65535, help="Port of the controller's status.")
    ] = Ports.controller,
) -> None:
    """Start MLflow, Ray and the controller on this machine.

    They run in the background, listen on loopback only, and are ended by `seatrial down`. The command returns
    when each of them answers; Ctrl-C before that takes everything back.
    """
    where = home_of_new(home)
    if (found := launch.running(where)) is not None:
        say(f"already up in {where}")
        _show(found)
        _tell_ill(found)
        return
    chosen = Ports(mlflow_port, ray_port, dashboard_port, serve_port, controller_port)
    say(f"starting in {where}")
    try:
        ready = launch.up(where, chosen, ray_cpus, _tell)
    except KeyboardInterrupt:
        complain("interrupted: everything that was started is ended")
        raise typer.Exit(130) from None
    except SeatrialError as error:
        if error.exit_code != UserError.exit_code:  # something ran
            say(f"everything that was started is ended; logs: {where / 'logs'}")
        raise
    _show(ready)
    _tell_ill(ready)


def _tell(part: launch.Ready) -> None:
    say(f"{part.name:<10}  ready after {part.seconds:.1f} s")


def _tell_ill(stack: State) -> None:
    """Parts that answer but complain, once they had time for a second look at each other."""
    deadline = time.monotonic() + SETTLE_S
    while True:
        ill = [part for part in status.read(stack.addresses) if part.health != "running"]
        if not ill or time.monotonic() > deadline:
            break
        time.sleep(POLL_S)
    for part in ill:
        say(f"{part.name} is {part.health}: {part.cause}")


def _show(stack: State) -> None:
    addresses = stack.addresses
    pairs(
        [
            ("MLflow", addresses.mlflow_uri),
            ("Ray dashboard", addresses.ray_dashboard),
            ("services", f"{addresses.serve_url} (after `seatrial deploy`)"),
            ("controller", f"{addresses.controller_url}/status"),
            ("logs", f"{addresses.home / 'logs'}"),
        ]
    )
    say('For plain ray and mlflow commands: eval "$(seatrial env)"')
