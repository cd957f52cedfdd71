"""`seatrial down`"""

from __future__ import annotations

from seatrial.cli.output import say
from seatrial.cli.where import HomeOption, addresses
from seatrial.stack import launch


def command(home: HomeOption = None) -> None:
    """End the local stack and everything it started.

    Jobs and replicas end, too. What they recorded stays: the database and artifacts of MLflow, the store, the
    logs.
    """
    where = addresses(home).home
    count = launch.down(where)
    say(f"down: {count} processes ended" if count else f"nothing was up in {where}")
