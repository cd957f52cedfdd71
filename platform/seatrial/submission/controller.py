"""Ask the controller how things are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import httpx

from seatrial.config.addresses import Addresses
from seatrial.errors import RetryableError, UserError

TIMEOUT_S = 10.0


def answers(addresses: Addresses) -> bool:
    """Whether a controller, leading or standing by, is there to run the queue."""
    try:
        body = httpx.get(f"{addresses.controller_url}/healthz", timeout=TIMEOUT_S).json()
    except (httpx.HTTPError, httpx.InvalidURL, ValueError):
        return False
    return isinstance(body, dict) and "leader" in body


def status(addresses: Addresses) -> Mapping[str, Any]:
    """The controller's `/status`.

    Raises:
        RetryableError: it does not answer, or its store does not.
    """
    url = f"{addresses.controller_url}/status"
    remedy = "run `seatrial up`, or set SEATRIAL_CONTROLLER_URL to a running controller"
    try:
        answer = httpx.get(url, timeout=TIMEOUT_S)
        body: Mapping[str, Any] = answer.json()
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise RetryableError(
            f"SEATRIAL_CONTROLLER_URL: {url}: does not answer ({error}): {remedy}"
        ) from error
    except ValueError as error:
        raise RetryableError(f"SEATRIAL_CONTROLLER_URL: {url}: is no controller: {remedy}") from error
    if answer.status_code != 200:
        said = body.get("error") if isinstance(body, dict) else None
        raise RetryableError(f"{url}: answers {answer.status_code} ({said}): see `seatrial status`")
    return body


def service(addresses: Addresses, name: str) -> Mapping[str, Any]:
    """What `/status` says of one service.

    Raises:
        UserError: it knows no such service.
        RetryableError: as :func:`status`.
    """
    found: list[Mapping[str, Any]] = list(status(addresses).get("services", []))
    for each in found:
        if each["name"] == name:
            return each
    known = ", ".join(str(each["name"]) for each in found) or "none"
    raise UserError(f"SERVICE: {name}: not deployed (deployed: {known}): `seatrial deploy` it first")
