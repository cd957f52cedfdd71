"""Secrets that people give by the environment: `NAME` holds the value, `NAME_FILE` a file with it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from seatrial.errors import UserError

CONTROLLER_TOKEN = "SEATRIAL_CONTROLLER_TOKEN"  # noqa: S105  the variable's name
WEBHOOK_SECRET = "SEATRIAL_WEBHOOK_SECRET"  # noqa: S105  the variable's name
LEAST_CHARS = 32


def secret(name: str, env: Mapping[str, str]) -> str | None:
    """The secret, from `NAME` if that is set, else from the file that `NAME_FILE` names; None without both.

    Raises:
        UserError: the file cannot be read, or what is given is too short or holds spaces or other signs that
            a header cannot carry. The value itself is never shown.
    """
    value, path = env.get(name, "").strip(), env.get(f"{name}_FILE", "").strip()
    if not value and not path:
        return None
    source = name if value else f"{name}_FILE: {path}"
    try:
        value = value or Path(path).expanduser().read_text(encoding="ascii").strip()
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or "not plain text"
        raise UserError(f"{source}: cannot be read ({why}): give a file with the secret") from error
    if len(value) < LEAST_CHARS or not all("!" <= sign <= "~" for sign in value):
        raise UserError(
            f"{source}: give at least {LEAST_CHARS} letters and digits, such as `openssl rand -hex 32` prints"
        )
    return value


def bearer(env: Mapping[str, str]) -> dict[str, str]:
    """The header with the controller's token; empty where there is none.

    Raises:
        UserError: as :func:`secret`.
    """
    token = secret(CONTROLLER_TOKEN, env)
    return {"Authorization": f"Bearer {token}"} if token else {}
