"""`seatrial down`"""

from __future__ import annotations

from seatrial.cli.output import say
from seatrial.cli.where import HomeOption, addresses
from seatrial.stack import launch


def command(home: HomeOption = None) -> None:
    """End the local stack and everything it started.

    Jobs and replicas end, too. What they recorded stays: the database and artifacts of MLflow, the store, and
    the last logs, those of Ray's jobs and replicas in `logs/ray`.
    """
    where = addresses(home).home
    ended = launch.down(where)
    if ended is None:
        say(f"nothing was up in {where}")
        return
    say(f"down: {ended.processes} processes ended")
    ray = f" (jobs and replicas: {ended.ray_logs})" if ended.ray_logs else ""
    say(f"logs: {where / 'logs'}{ray}")
