"""`seatrial rollback`"""

from __future__ import annotations

from typing import Annotated

import typer

from seatrial.cli.output import say
from seatrial.cli.where import addresses
from seatrial.errors import UserError
from seatrial.registry import aliases


def command(
    service: Annotated[str, typer.Argument(help="Name of the service.", show_default=False)],
) -> None:
    """Point the champion back at the previous version.

    Sets the alias `champion` to what `previous` names and nothing else; a running trial ends as superseded.
    """
    uri = addresses().mlflow_uri
    before = aliases.read(service, uri=uri)
    champion, previous = before.get("champion"), before.get("previous")
    if previous is None:
        raise UserError(
            f"SERVICE: {service}: has no `previous` version: name one with "
            f"`seatrial promote {service} VERSION --as champion`"
        )
    if previous == champion:
        say(f"{service}@champion: is version {champion} already")
        return
    aliases.move(service, "champion", previous, expected=champion, uri=uri)
    say(f"{service}@champion: version {previous} (was {champion or 'none'})")
