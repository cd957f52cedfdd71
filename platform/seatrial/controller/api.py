"""The controller's API: `/healthz`, `/status`, `/api/trials/ID`, the pages, and where MLflow's hints come.

Who may call is decided before it, in `login.Gate`.
"""

from __future__ import annotations

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse
from starlette.routing import Route

from seatrial.controller import pages, webhooks
from seatrial.controller.login import CALLER
from seatrial.controller.loop import Controller
from seatrial.controller.report import reported
from seatrial.controller.status import summary
from seatrial.controller.trouble import Trouble
from seatrial.errors import SeatrialError

BEGINNING = "no pass is over yet: ask again in a moment"


def build(controller: Controller, receiver: webhooks.Receiver | None = None) -> Starlette:
    """The API over a controller whose loop runs in another thread; with ``receiver`` also MLflow's hints."""

    def why(error: Exception) -> str:
        """What a page says when the store does not: before the first pass its tables may not be there."""
        return Trouble.of(error).text if controller.report.passes else BEGINNING

    async def healthz(request: Request) -> JSONResponse:
        report = controller.report
        is_well = report.is_well_at(controller.clock())
        if request.scope.get(CALLER) == "stranger":  # who gets no names, addresses or reasons
            return JSONResponse({"ok": is_well}, status_code=200 if is_well else 503)
        body = {
            "ok": is_well,
            "passes": report.passes,
            "last_pass_at": report.at,
            "leader": report.leader,
            "leads": report.leader == controller.leadership.holder,
            "error": "; ".join(report.errors) or (None if report.passes else BEGINNING),
        }
        return JSONResponse(body, status_code=200 if is_well else 503)

    def status(_request: Request) -> JSONResponse:
        report = controller.report
        try:
            return JSONResponse(summary(controller.store, report, controller.clock()))
        except Exception as error:
            return JSONResponse({"error": why(error), "services": []}, status_code=503)

    def trial(request: Request) -> JSONResponse:
        name = request.path_params["trial_id"]
        store, seen = controller.store, controller.report
        try:
            found = store.trial(name)
            if found is None:
                return JSONResponse({"error": f"{name[:100]}: no such trial"}, status_code=404)
            return JSONResponse(reported(store, seen, found, controller.clock()))
        except Exception as error:
            return JSONResponse({"error": why(error)}, status_code=503)

    api = [Route("/healthz", healthz), Route("/status", status), Route("/api/trials/{trial_id}", trial)]
    hooks = [Route(webhooks.PATH, receiver.receive, methods=["POST"])] if receiver else []

    def away(_request: Request, error: Exception) -> PlainTextResponse:
        return PlainTextResponse(why(error), status_code=503)

    routes = [*api, *hooks, *pages.routes(controller)]
    return Starlette(routes=routes, exception_handlers={SeatrialError: away})
