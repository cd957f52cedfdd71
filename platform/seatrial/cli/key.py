"""`seatrial key`"""

from __future__ import annotations

import hashlib
import secrets
from typing import Annotated

import typer
from pydantic import ValidationError

from seatrial.cli.output import say
from seatrial.config.service import KeySection
from seatrial.errors import UserError

BYTES = 32


def command(
    name: Annotated[str, typer.Argument(help="Who will hold the key.", show_default=False)],
) -> None:
    """Make an API key for a service.

    The key is printed once and kept nowhere; the service file gets its hash only.
    """
    key = f"st-{secrets.token_urlsafe(BYTES)}"
    try:
        section = KeySection(name=name, sha256=hashlib.sha256(key.encode()).hexdigest())
    except ValidationError as error:
        raise UserError(f"NAME: {name}: use a-z, 0-9 and -, such as `web`") from error
    say(f"key for {section.name} (shown once; the client sends it as `Authorization: Bearer`):")
    say(f"\n{key}\n")
    say("add to the service file:")
    say(f"\nhttp:\n  keys:\n    - name: {section.name}\n      sha256: {section.sha256}")
