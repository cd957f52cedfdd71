"""The controller's small API: `/healthz` and `/status`. It asks for no key, so it belongs on loopback."""

from __future__ import annotations

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from seatrial.controller.loop import Controller
from seatrial.controller.status import summary
from seatrial.controller.trouble import Trouble


def build(controller: Controller) -> Starlette:
    """The API over a controller whose loop runs in another thread."""

    def healthz(_request: Request) -> JSONResponse:
        report = controller.report
        is_well = report.is_well_at(controller.clock())
        body = {
            "ok": is_well,
            "passes": report.passes,
            "last_pass_at": report.at,
            "leader": report.leader,
            "leads": report.leader == controller.leadership.holder,
            "error": "; ".join(report.errors) or (None if report.passes else "no pass is over yet"),
        }
        return JSONResponse(body, status_code=200 if is_well else 503)

    def status(_request: Request) -> JSONResponse:
        report = controller.report
        try:
            return JSONResponse(summary(controller.store, report, controller.clock()))
        except Exception as error:
            return JSONResponse({"error": Trouble.of(error).text, "services": []}, status_code=503)

    return Starlette(routes=[Route("/healthz", healthz), Route("/status", status)])
