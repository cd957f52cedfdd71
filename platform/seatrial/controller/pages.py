"""The pages for people: `/trials`, `/trials/ID`, and the pictures on them."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import Route

from seatrial.config.addresses import public
from seatrial.controller import pictures
from seatrial.controller.login import CALLER
from seatrial.controller.loop import Controller
from seatrial.controller.report import reported
from seatrial.controller.show import FILTERS
from seatrial.errors import SeatrialError
from seatrial.experiments.trial import Trial
from seatrial.registry import audit
from seatrial.registry.audit_plot import arm_colours
from seatrial.registry.client import connect

WEB = Path(__file__).with_name("web")
STATIC = {"style.css": "text/css", "icon.svg": "image/svg+xml"}
PICTURES = ("intervals", "exposures", "latencies")


def routes(controller: Controller) -> list[Route]:
    """The pages over a controller whose loop runs in another thread; links lead to its MLflow server."""
    pages = Pages(controller)
    return [
        Route("/", lambda _request: RedirectResponse("/trials")),
        Route("/trials", pages.trials),
        Route("/trials/{trial_id}", pages.trial),
        Route("/trials/{trial_id}/{name}.svg", pages.picture),
        Route("/trials/{trial_id}/record", pages.record),
        Route("/trials/{trial_id}/runs/{version}", pages.run),
        Route("/web/{name}", _static),
    ]


class Pages:
    """Each request reads the store; what costs much is kept while nothing has changed."""

    def __init__(self, controller: Controller) -> None:
        self._controller = controller
        self._store = controller.store
        self._mlflow = controller.mlflow_uri
        self._drawn: dict[tuple[str, str], tuple[Any, bytes]] = {}

    def trials(self, request: Request) -> Response:
        """Every service with its trials, those that run first."""
        now = self._controller.clock()
        found = [self._report(trial, now) for trial in self._store.trials()]
        services = sorted(self._store.services())
        return self._page("trials.html", request, trials=found, services=services, now=now)

    def trial(self, request: Request) -> Response:
        """One trial."""
        trial = self._trial(request)
        now = self._controller.clock()
        latency = self._store.latencies(trial.id)
        return self._page(
            "trial.html",
            request,
            trial=self._report(trial, now),
            latency=latency,
            colours=arm_colours(trial),
            decision=self._store.decision(trial.id),
            version=self._version_page,
            now=now,
        )

    def picture(self, request: Request) -> Response:
        """One of a trial's pictures."""
        name = request.path_params["name"]
        if name not in PICTURES:
            raise HTTPException(404, f"{name}.svg: no such picture: {', '.join(PICTURES)}")
        trial = self._trial(request)
        looks = self._store.looks(trial.id)
        state = (len(looks), trial.table.arms, self._answers(trial))
        kept = self._drawn.get((trial.id, name))
        if kept is None or kept[0] != state:
            drawn = self._draw(name, trial, looks)
            if len(self._drawn) > 100:
                self._drawn.clear()
            self._drawn[trial.id, name] = kept = (state, drawn)
        return Response(kept[1], media_type="image/svg+xml")

    def record(self, request: Request) -> Response:
        """To the trial's audit record in MLflow."""
        trial = self._trial(request)
        found = _asking(lambda: audit.find(trial.id, uri=self._mlflow))
        if found is None:
            raise HTTPException(404, f"{trial.id}: no audit record yet: it is written when the trial ends")
        return self._to_run(found.run_id)

    def run(self, request: Request) -> Response:
        """To the MLflow run that made a version."""
        trial, version = self._trial(request), request.path_params["version"]
        if version not in trial.arms.values():
            raise HTTPException(404, f"{version}: no version of this trial")
        client = connect(self._mlflow)
        found = _asking(lambda: client.get_model_version(trial.service, version))
        if not found.run_id:
            raise HTTPException(404, f"version {version}: was made by no run")
        return self._to_run(found.run_id)

    def _to_run(self, run_id: str) -> Response:
        client = connect(self._mlflow)
        experiment = _asking(lambda: client.get_run(run_id).info.experiment_id)
        return RedirectResponse(f"{public(self._mlflow)}/#/experiments/{experiment}/runs/{run_id}", 303)

    def _version_page(self, service: str, version: str) -> str:
        return f"{public(self._mlflow)}/#/models/{service}/versions/{version}"

    def _trial(self, request: Request) -> Trial:
        trial_id = request.path_params["trial_id"]
        found = self._store.trial(trial_id)
        if found is None:
            raise HTTPException(404, f"{trial_id[:100]}: no such trial")
        return found

    def _report(self, trial: Trial, now: float) -> dict[str, Any]:
        return reported(self._store, self._controller.report, trial, now)

    def _answers(self, trial: Trial) -> int:
        seen = self._controller.report.evidence.get(trial.id)
        return sum(arm.exposures for arm in seen.arms) if seen else -1

    def _draw(self, name: str, trial: Trial, looks: Any) -> bytes:
        if name == "latencies":
            return pictures.latencies(trial, self._store.latencies(trial.id))
        draw = pictures.intervals if name == "intervals" else pictures.exposures
        return draw(trial, looks)

    def _page(self, template: str, request: Request, **values: Any) -> Response:
        is_session = request.scope.get(CALLER) == "session"
        return HTMLResponse(_templates().get_template(template).render(is_session=is_session, **values))


def _static(request: Request) -> Response:
    name = request.path_params["name"]
    if name not in STATIC:
        raise HTTPException(404, f"{name[:100]}: no such file")
    return Response((WEB / name).read_bytes(), media_type=STATIC[name])


def _asking(question: Callable[[], Any]) -> Any:
    """MLflow's answer.

    Raises:
        HTTPException: it has none.
    """
    try:
        return question()
    except Exception as error:
        said = (
            str(error).splitlines()[0] if isinstance(error, SeatrialError) else "MLflow does not answer this"
        )
        raise HTTPException(502, said) from error


@cache
def _templates() -> Any:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    made = Environment(
        loader=FileSystemLoader(WEB),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters.update(FILTERS)
    return made
