"""What the dispatcher asks Ray, over real HTTP with answers as Ray gives them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from seatrial.errors import RetryableError, SeatrialError
from seatrial.submission.order import Room
from seatrial.submission.rayjobs import Group, RayJobs
from tests.controller.server import serving

AGENT = "Traceback (most recent call last):\nRuntimeError: Request failed with status code {}: {}."
RUN = '::seatrial:: {"event":"run","run_id":"r","url":"u"}'
BAR = "1 %\r" * 2000 + "100 %\r"
LOG = "\n".join(["\x1b[31mred\x1b[0m", "::seatrial:: [1]", "x" * 9000, BAR, RUN, ""])


class Dashboard:
    """Ray's dashboard, whose answer to a submission a test sets."""

    def __init__(self) -> None:
        self.status, self.text = 200, "{}"
        self.asked: dict[str, object] = {}

    async def submit(self, request: Request) -> Response:
        self.asked = await request.json()
        return PlainTextResponse(self.text, self.status)

    async def logs(self, _request: Request) -> Response:
        return JSONResponse({"logs": LOG})


@pytest.fixture(scope="module")
def served() -> Iterator[tuple[RayJobs, Dashboard]]:
    dashboard = Dashboard()
    routes = [
        Route("/api/jobs/", dashboard.submit, methods=["POST"]),
        Route("/api/jobs/{job}/logs", dashboard.logs),
    ]
    with serving(Starlette(routes=routes)) as url:
        jobs = RayJobs(url, lambda: None)
        yield jobs, dashboard
        jobs.close()


def test_a_page_in_place_of_rays_answer_is_no_answer() -> None:
    async def page(_request: Request) -> Response:
        return PlainTextResponse("<html>log in</html>", 200)

    with serving(Starlette(routes=[Route("/api/jobs/", page)])) as url:
        jobs = RayJobs(url, lambda: None)
        with pytest.raises(RetryableError, match="answers no JSON"):
            jobs.jobs()
        jobs.close()


@pytest.mark.parametrize(
    ("status", "text", "error"),
    [
        (400, "TypeError: entrypoint", SeatrialError),
        (500, AGENT.format(400, "ValueError: no such environment"), SeatrialError),
        (500, "No available agent to submit job, please try again later.", RetryableError),
        (500, AGENT.format(500, "GCS is away"), RetryableError),
        (503, "", RetryableError),
    ],
)
def test_what_ray_refuses_is_told_from_what_it_cannot_take_now(
    served: tuple[RayJobs, Dashboard], status: int, text: str, error: type[SeatrialError]
) -> None:
    jobs, dashboard = served
    dashboard.status, dashboard.text = status, text
    with pytest.raises(error) as caught:
        jobs.submit("a", "true", {}, {}, Room())
    assert type(caught.value) is error


def test_an_attempt_that_ray_has_already_is_as_good_as_taken(served: tuple[RayJobs, Dashboard]) -> None:
    jobs, dashboard = served
    said = "ValueError: Job with submission_id a already exists. Please use a different one"
    dashboard.status, dashboard.text = 500, AGENT.format(400, said)
    assert jobs.submit("a", "true", {}, {}, Room()) is None  # type: ignore[func-returns-value]


def test_what_is_reserved_for_a_command_is_asked_by_the_names_that_ray_knows(
    served: tuple[RayJobs, Dashboard],
) -> None:
    from ray.dashboard.modules.job.common import JobSubmitRequest

    jobs, dashboard = served
    dashboard.status, dashboard.text = 200, "{}"
    jobs.submit("a", "true", {}, {}, Room(2.0, 1.0))
    request = JobSubmitRequest(**dashboard.asked)
    assert (request.entrypoint_num_cpus, request.entrypoint_num_gpus) == (2.0, 1.0)


def test_placement_groups_are_read_with_their_drivers_and_their_room() -> None:
    bundle = {"unit_resources": {"CPU": 2.0, "GPU": 1.0}}
    rows = [
        {"placement_group_id": "a", "creator_job_id": "02000000", "bundles": [bundle, bundle]},
        {"placement_group_id": "b", "creator_job_id": "03000000", "bundles": None, "is_detached": True},
    ]
    asked: list[dict[str, str]] = []

    async def groups(request: Request) -> Response:
        asked.append(dict(request.query_params))
        return JSONResponse({"data": {"result": {"result": rows}}})

    with serving(Starlette(routes=[Route("/api/v0/placement_groups", groups)])) as url:
        jobs = RayJobs(url, lambda: None)
        assert jobs.groups() == [
            Group("a", "02000000", Room(4, 2)),
            Group("b", "03000000", Room(), outlives=True),
        ]
        jobs.close()
    assert asked[0]["filter_values"] == "CREATED"


def test_a_log_is_plain_and_bounded_whatever_a_job_prints(served: tuple[RayJobs, Dashboard]) -> None:
    found = served[0].log("a")
    assert [line[:20] for line in found.lines] == ["red", "::seatrial:: [1]", "x" * 20, "100 %"]
    assert max(map(len, found.lines)) < 9000
    assert found.result == {"run": "u", "run_id": "r"}
