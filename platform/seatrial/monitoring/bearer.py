"""Ray's token, for everything here that speaks to Ray."""

from __future__ import annotations

import os
from pathlib import Path

from seatrial.config.addresses import Addresses

TOKEN_VARIABLE = "RAY_AUTH_TOKEN"  # noqa: S105  the variable's name


def ray_token(path: Path | None) -> str | None:
    """The token from where Ray itself looks, in Ray's order: `RAY_AUTH_TOKEN`, the file at ``path``
    (`RAY_AUTH_TOKEN_PATH`), `~/.ray/auth_token`. None when there is none, or authentication is off."""
    if os.environ.get("RAY_AUTH_MODE", "").lower() == "disabled":
        return None
    if given := os.environ.get(TOKEN_VARIABLE, "").strip():
        return given
    path = path or Path.home() / ".ray" / "auth_token"
    try:
        return path.read_text(encoding="utf-8").strip() or None
    except OSError:
        return None


def token_source(addresses: Addresses) -> str:
    """`VARIABLE: where the token comes from`, for messages about a token that is refused."""
    if os.environ.get(TOKEN_VARIABLE):
        return f"{TOKEN_VARIABLE}: its value"
    return f"RAY_AUTH_TOKEN_PATH: {addresses.ray_token_path or 'not set'}"


def bearer(addresses: Addresses) -> dict[str, str]:
    """The header with Ray's token; empty where there is none."""
    token = ray_token(addresses.ray_token_path)
    return {"Authorization": f"Bearer {token}"} if token else {}
