"""The controller's small API, on loopback: `/healthz` and `/status`."""

from __future__ import annotations

import time

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from seatrial.controller.loop import Controller
from seatrial.controller.status import summary
from seatrial.errors import RetryableError

STALLED_S = 300.0


def build(controller: Controller) -> Starlette:
    """The API over a controller whose loop runs in another thread."""

    def healthz(_request: Request) -> JSONResponse:
        report = controller.report
        is_stalled = report.at is not None and time.time() - report.at > STALLED_S
        body = {
            "ok": not is_stalled,
            "passes": report.passes,
            "last_pass_at": report.at,
            "error": "; ".join(report.errors) or None,
        }
        return JSONResponse(body, status_code=503 if is_stalled else 200)

    def status(_request: Request) -> JSONResponse:
        report = controller.report
        try:
            return JSONResponse(summary(controller.store, report.aliases, report.errors, time.time()))
        except RetryableError as error:
            return JSONResponse({"error": str(error), "services": []}, status_code=503)

    return Starlette(routes=[Route("/healthz", healthz), Route("/status", status)])
