"""Ask the controller how things are."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

import httpx

from seatrial.config.addresses import Addresses
from seatrial.config.secret import CONTROLLER_TOKEN, bearer
from seatrial.errors import RetryableError, UserError

TIMEOUT_S = 10.0
NAME = re.compile(r"[a-z0-9][a-z0-9-]*")


def answers(addresses: Addresses) -> bool:
    """Whether a controller, leading or standing by, is there to run the queue."""
    try:
        body = httpx.get(f"{addresses.controller_url}/healthz", timeout=TIMEOUT_S).json()
    except (httpx.HTTPError, httpx.InvalidURL, ValueError):
        return False
    return isinstance(body, dict) and "ok" in body


def status(addresses: Addresses) -> Mapping[str, Any]:
    """The controller's `/status`.

    Raises:
        UserError: it asks for a token that the environment does not give.
        RetryableError: it does not answer, or its store does not.
    """
    return _ask(addresses, "/status")


def trial(addresses: Addresses, name: str) -> Mapping[str, Any]:
    """What the controller says of the trial with this id, or of the last trial of the service of this name.

    Raises:
        UserError: it knows neither.
        RetryableError: as :func:`status`.
    """
    if not NAME.fullmatch(name):
        raise UserError(f"TRIAL: {name}: no such name: use a-z, 0-9 and -")
    services = {each["name"]: each for each in status(addresses).get("services", [])}
    found = (services.get(name) or {}).get("trial")
    if name in services and found is None:
        raise UserError(f"TRIAL: {name}: has no trial yet: `seatrial trial start {name} VERSION` opens one")
    trial_id = found["id"] if found else name
    body = _ask(addresses, f"/api/trials/{quote(trial_id, safe='')}", absent=True)
    if "id" not in body:
        known = ", ".join(each["trial"]["id"] for each in services.values() if each.get("trial")) or "none"
        raise UserError(f"TRIAL: {name}: no such trial (latest: {known}): give an id or a service's name")
    return body


def _ask(addresses: Addresses, path: str, *, absent: bool = False) -> Mapping[str, Any]:
    """The JSON at ``path``; with ``absent`` also what comes with a 404.

    Raises:
        UserError: it asks for a token that the environment does not give.
        RetryableError: the controller does not answer, or its store does not.
    """
    url = f"{addresses.controller_url}{path}"
    remedy = "run `seatrial up`, or set SEATRIAL_CONTROLLER_URL to a running controller"
    try:
        answer = httpx.get(url, headers=bearer(os.environ), timeout=TIMEOUT_S)
        body: Mapping[str, Any] = answer.json()
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise RetryableError(
            f"SEATRIAL_CONTROLLER_URL: {url}: does not answer ({error}): {remedy}"
        ) from error
    except ValueError as error:
        raise RetryableError(f"SEATRIAL_CONTROLLER_URL: {url}: is no controller: {remedy}") from error
    if answer.status_code == 401:
        raise UserError(f"{CONTROLLER_TOKEN}: not set, or not the token of {url}: set it as the controller's")
    if answer.status_code != 200 and not (absent and answer.status_code == 404):
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
