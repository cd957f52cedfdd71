"""`seatrial promote`"""

from __future__ import annotations

from typing import Annotated

import typer

from seatrial.cli.output import say
from seatrial.cli.where import addresses
from seatrial.experiments.trial import CHALLENGER
from seatrial.submission import promote


def command(
    service: Annotated[str, typer.Argument(help="Name of the service.", show_default=False)],
    version: Annotated[str, typer.Argument(help="Number of the version in MLflow.", show_default=False)],
    alias: Annotated[
        str,
        typer.Option(
            "--as",
            help="`challenger` opens a trial against the champion, `challenger-b` and so on beside it; "
            "`champion` replaces it without one; `shadow` sees a copy of the traffic.",
        ),
    ] = CHALLENGER,
) -> None:
    """Set an alias of a service to a version.

    Nothing else happens here, exactly as in the MLflow UI: the controller sees the alias and does the rest.
    """
    set_alias(service, version, alias)


def set_alias(service: str, version: str, alias: str) -> None:
    """Point the alias at the version, and say how to watch what follows.

    Raises:
        UserError: as :func:`seatrial.submission.promote.set_alias`.
    """
    was = promote.set_alias(service, version, alias, uri=addresses().mlflow_uri)
    say(f"{service}@{alias}: version {version}" + (f" (was {was})" if was else ""))
    say(f"watch with: seatrial trial status {service}")
