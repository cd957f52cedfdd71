"""The `--home` option and the addresses that go with it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from seatrial.config.addresses import HOME_NAME, Addresses, read_recorded

HomeOption = Annotated[
    Path | None,
    typer.Option(
        help="Folder of the local stack's state, logs and data; otherwise SEATRIAL_HOME, else .seatrial here "
        "(or above, where a stack runs).",
        show_default=False,
    ),
]


def addresses(home: Path | None = None) -> Addresses:
    """Where the parts are. With ``home``, the stack recorded there wins over the environment's variables."""
    if home is None:
        return Addresses.resolve()
    home = home.expanduser().absolute()
    found = Addresses.resolve({**os.environ, "SEATRIAL_HOME": str(home)})
    return Addresses.of({**found.values(), **read_recorded(home), "home": str(home)})


def home_of_new(home: Path | None) -> Path:
    """Where a stack is started: never a folder above, so that projects inside each other stay apart."""
    return (home or Path(os.environ.get("SEATRIAL_HOME") or HOME_NAME)).expanduser().absolute()
