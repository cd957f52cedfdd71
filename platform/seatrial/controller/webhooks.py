"""MLflow's webhooks: `POST /hooks/mlflow` wakes the loop, and that is all it does.

What a delivery says is not used: the next pass looks at the registry itself. A lost, doubled, forged or late
delivery changes nothing but when that pass is. Signatures follow Standard Webhooks, as MLflow sends them
(`mlflow/webhooks/delivery.py`).
"""

from __future__ import annotations

import base64
import hmac
import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from seatrial.controller.body import read_bounded
from seatrial.errors import SeatrialError
from seatrial.registry import webhooks

log = logging.getLogger("seatrial.controller")

PATH = "/hooks/mlflow"
MOST_BYTES = 64 * 1024
TOLERANCE_S = 300
# MLflow makes an id for every delivery; more of them in the window than this are refused.
MOST_IDS = 20_000
MOST_ID_CHARS = 100
RETRY_S = 5.0
CHECK_S = 300.0


class Seen:
    """Ids of the deliveries that are still within the window of time."""

    def __init__(self, most: int = MOST_IDS) -> None:
        self._ids: OrderedDict[str, float] = OrderedDict()
        self._most = most

    def add(self, delivery_id: str, now: float) -> bool:
        """Keep an id; whether it is new and there was room for it."""
        # The sender's clock may be ahead by the tolerance, and stays acceptable for as long after.
        while self._ids and next(iter(self._ids.values())) < now - 2 * TOLERANCE_S:
            self._ids.popitem(last=False)
        if delivery_id in self._ids or len(self._ids) >= self._most:
            return False
        self._ids[delivery_id] = now
        return True


class Receiver:
    """Answers MLflow's deliveries: 204 wakes the loop, anything else is refused."""

    def __init__(
        self, secret: str, wake: Callable[[], None], *, clock: Callable[[], float] = time.time
    ) -> None:
        self._secret = secret
        self._wake = wake
        self._clock = clock
        self._seen = Seen()

    async def receive(self, request: Request) -> Response:
        """One delivery."""
        body = await read_bounded(request, MOST_BYTES)
        if body is None:
            return _refuse(413, f"body: longer than {MOST_BYTES} bytes")
        now = self._clock()
        if (trouble := check(self._secret, request.headers, body, now)) is not None:
            return _refuse(401, trouble)
        if not self._seen.add(request.headers["x-mlflow-delivery-id"], now):
            return _refuse(409, "X-MLflow-Delivery-Id: was there before")
        self._wake()
        return Response(status_code=204)


def check(secret: str, headers: Mapping[str, str], body: bytes, now: float) -> str | None:
    """What is wrong with a delivery, None when nothing is; a wrong signature takes as long as a right one."""
    delivery_id = headers.get("x-mlflow-delivery-id", "")
    timestamp = headers.get("x-mlflow-timestamp", "")
    version, _, given = headers.get("x-mlflow-signature", "").partition(",")
    if not delivery_id or len(delivery_id) > MOST_ID_CHARS or version != "v1":
        return "X-MLflow-Signature: `v1,…` over a delivery id is needed"
    if not hmac.compare_digest(sign(secret, delivery_id, timestamp, body).encode(), given.encode()):
        return "X-MLflow-Signature: is not that of this body"
    if not (timestamp.isascii() and timestamp.isdigit()) or abs(now - float(timestamp)) > TOLERANCE_S:
        return f"X-MLflow-Timestamp: more than {TOLERANCE_S} s from this clock"
    return None


def sign(secret: str, delivery_id: str, timestamp: str, body: bytes) -> str:
    """The signature that MLflow sends: base64 of HMAC-SHA256 over `id.timestamp.body`."""
    text = b".".join((delivery_id.encode(), timestamp.encode(), body))
    return base64.b64encode(hmac.digest(secret.encode(), text, "sha256")).decode()


def keep_registered(
    stop: threading.Event, url: str, secret: str, *, uri: str, check_s: float = CHECK_S
) -> None:
    """See to it that MLflow sends its hints to ``url`` until ``stop`` is set; trouble is logged once."""
    told, is_sent = "", False
    while not stop.is_set():
        try:
            webhooks.ensure(url, secret, uri=uri, renew=not is_sent)
            is_sent, trouble = True, ""
        except SeatrialError as error:
            trouble = str(error)
        except Exception as error:
            trouble = f"{type(error).__name__}: {error}"
        if trouble and trouble != told:
            log.warning("hints: %s: no webhook at MLflow: changes are seen at the next poll", trouble)
        told = trouble
        stop.wait(RETRY_S if trouble else check_s)


def _refuse(status: int, error: str) -> Response:
    return JSONResponse({"error": error}, status_code=status)
