"""The controller's pages, as a person sees them in a browser."""

from __future__ import annotations

import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from starlette.testclient import TestClient

from seatrial.config.trial import TrialSection
from seatrial.controller.api import build
from seatrial.controller.loop import Controller
from seatrial.errors import RetryableError
from seatrial.experiments.assignment import Arm, TrialTable, assign
from seatrial.experiments.trial import Decision, Look, Trial, look_at
from seatrial.registry.client import require_mlflow
from seatrial.store import Store, outcome_row
from tests.controller.chromium import browser
from tests.controller.one_replica import OneReplica

pytestmark = pytest.mark.slow
HOUR = 3600.0
REFRESH = re.compile(r'<meta http-equiv="refresh" content="\d+">')


class Site:
    """A controller that has looked at some trials, and its pages at ``url``."""

    def __init__(self, folder: Path, url: str) -> None:
        self.url = url
        self.store = Store(f"sqlite:///{folder / 'store.db'}")
        self.store.migrate()
        self.now = time.time()
        self.controller = Controller(self.store, OneReplica(self.store), "http://127.0.0.1:9")  # type: ignore[arg-type]

    def add(
        self, number: int, rates: dict[str, float], *, users: int = 600, name: str = "support-chat"
    ) -> Trial:
        """A trial that began three hours ago, with its users' answers and outcomes."""
        policy = {**TrialSection().model_dump(mode="json"), "minimum_units": 200}
        each = 0.5 / (len(rates) - 1)
        arms = tuple(Arm(arm, str(index + 1), 0.5 if index == 0 else each) for index, arm in enumerate(rates))
        table = TrialTable(f"{name}-{number}", f"seed-{number}", 1.0, arms)
        challengers = {arm.name: arm.version for arm in arms[1:]}
        began = self.now - 3 * HOUR
        trial = Trial(table.id, name, number, "open", table, policy, "1", challengers, began, began)
        self.store.open_trial(trial)
        step = users // 6
        seen: dict[str, int] = dict.fromkeys(rates, 0)
        for start in range(0, users, step):
            at = began + 3 * HOUR * (start + step) / users
            rows, outcomes = [], []
            for user in range(start, start + step):
                arm = assign(f"user-{user}", table)
                assert arm is not None
                seen[arm.name] += 1
                request = f"{table.id}-{user}"
                row = {"request_id": request, "trial_id": table.id, "service": name, "unit": f"user-{user}"}
                row |= {"sticky": True, "arm": arm.name, "fallback": False, "status": 200, "at": at}
                row |= {"latency_s": 0.3 + user % 7 * 0.05, "ttft_s": 0.1}
                rows.append({**row, "assigned_version": arm.version, "served_version": arm.version})
                is_hit = (seen[arm.name] * 0.618034) % 1 < rates[arm.name]
                outcomes.append(outcome_row(name, request, "resolved", float(is_hit), now=at))
            self.store.add_exposures(rows)
            self.store.add_outcomes(outcomes)
            evidence = self.store.evidence(trial, now=at)
            judged = look_at(trial, evidence, at)
            counts = {each.name: each.exposures for each in evidence.arms}
            self.store.add_look(Look(trial.id, evidence.units, at, counts, judged))
        return trial

    def decide(self, trial: Trial) -> Decision:
        evidence = self.store.evidence(trial, now=self.now)
        judged = look_at(trial, evidence, self.now)
        assert judged.verdict is not None
        decision = Decision(
            trial.id, trial.id, trial.service, judged.verdict, judged.reason, "seatrial controller",
            evidence, judged, self.now,
        )  # fmt: skip
        self.store.decide(decision)
        self.store.close_trial(decision)
        return decision

    def look(self) -> None:
        """What a pass of the controller leaves behind."""
        running = [trial for trial in self.store.trials() if trial.state == "open"]
        evidence = {trial.id: self.store.evidence(trial, now=self.now) for trial in running}
        self.controller.report = replace(self.controller.report, evidence=evidence)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    listening = socket.create_server(("127.0.0.1", 0))
    found = Site(tmp_path_factory.mktemp("site"), f"http://127.0.0.1:{listening.getsockname()[1]}")
    found.decide(found.add(1, {"champion": 0.3, "challenger": 0.6}))
    running = found.add(2, {"champion": 0.5, "challenger": 0.55})
    early = outcome_row("support-chat", None, "resolved", 1.0, now=running.opened_at, unit="user-1")
    found.store.add_outcomes([early])
    found.add(1, {"champion": 0.4, "challenger": 0.45, "challenger-b": 0.5}, name="search")
    found.look()
    server = uvicorn.Server(uvicorn.Config(build(found.controller), log_level="warning"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    while not server.started:
        time.sleep(0.05)
    yield found
    server.should_exit = True
    thread.join(10)


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with browser() as made:
        yield made


def send_without_refresh(route: Any) -> None:
    answer = route.fetch()
    route.fulfill(response=answer, body=REFRESH.sub("", answer.text()))


@pytest.fixture
def visit(site: Site, chromium: Any) -> Iterator[Callable[..., Any]]:
    """Open a page, which stays as it is; what fails to load, or complains in the console, fails the test."""
    troubles: list[str] = []
    contexts = []

    def open_page(path: str, width: int = 1280) -> Any:
        context = chromium.new_context(viewport={"width": width, "height": 1000})
        contexts.append(context)
        context.route(re.compile(r"/trials(/[^/]+)?$"), send_without_refresh)
        page = context.new_page()
        page.on("console", lambda message: troubles.append(message.text))
        page.on("requestfailed", lambda request: troubles.append(request.url))
        page.on("response", lambda answer: answer.status >= 400 and troubles.append(answer.url))
        page.on(
            "request",
            lambda request: request.url.startswith((site.url, "data:")) or troubles.append(request.url),
        )
        page.goto(f"{site.url}{path}", wait_until="networkidle")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert troubles == []


def test_the_list_shows_running_trials_first_and_leads_to_each(visit: Any, tmp_path: Path):
    page = visit("/trials")
    cards = page.locator(".card h2").all_inner_texts()
    assert sorted(text.split()[0] for text in cards) == ["search-1", "support-chat-2"]
    row = page.locator("tbody tr").inner_text()
    assert "support-chat-1" in row
    assert "promoted" in row
    page.screenshot(path=tmp_path / "trials.png", full_page=True)
    page.click("text=support-chat-2")
    page.wait_for_url("**/trials/support-chat-2", wait_until="networkidle")
    assert page.locator("h1").inner_text().startswith("support-chat-2")


def test_a_running_trial_says_what_it_waits_for_and_when_it_may_decide(
    visit: Any, site: Site, tmp_path: Path
):
    page = visit("/trials/support-chat-2")
    text = page.locator("main").inner_text()
    assert "running" in page.locator("h1").inner_text()
    assert "still holds zero" in text
    assert "decides in about" in text
    arms = page.locator("table").first.locator("tbody tr").all_inner_texts()
    assert len(arms) == 2
    facts = page.locator(".facts").inner_text()
    assert "600" in facts
    assert "1 before their user's first request" in facts
    assert page.get_by_text("with its 95% confidence sequence").count() == 1
    assert page.evaluate("[...document.images].every(image => image.complete && image.naturalWidth > 0)")
    page.screenshot(path=tmp_path / "running.png", full_page=True)


def test_a_decided_trial_says_why_by_whom_and_links_to_versions_and_record(visit: Any, tmp_path: Path):
    page = visit("/trials/support-chat-1")
    log = page.locator(".log").inner_text()
    assert "promote by seatrial controller" in log
    links = page.eval_on_selector_all("a", "found => found.map(a => a.getAttribute('href'))")
    assert "http://127.0.0.1:9/#/models/support-chat/versions/2" in links
    assert "/trials/support-chat-1/record" in links
    page.screenshot(path=tmp_path / "decided.png", full_page=True)


def test_only_pages_on_which_something_still_runs_refresh_themselves(site: Site):
    said = {
        path: bool(REFRESH.search(httpx.get(f"{site.url}{path}", timeout=60).text))
        for path in ("/trials", "/trials/support-chat-2", "/trials/support-chat-1")
    }
    assert list(said.values()) == [True, True, False]


def test_several_challengers_each_have_their_row_and_their_line(visit: Any, tmp_path: Path):
    page = visit("/trials/search-1")
    arms = page.locator("table").first.locator("tbody tr").all_inner_texts()
    assert [arm.split()[0] for arm in arms] == ["champion", "challenger", "challenger-b"]
    page.screenshot(path=tmp_path / "several.png", full_page=True)


@pytest.mark.parametrize("path", ["/trials", "/trials/search-1"])
def test_on_a_phone_nothing_but_tables_scrolls_sideways(visit: Any, path: str, tmp_path: Path):
    page = visit(path, width=390)
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    page.screenshot(path=tmp_path / "phone.png", full_page=True)


def test_what_people_write_is_text_and_never_markup(visit: Any, site: Site):
    trial = site.store.trial("search-1")
    assert trial is not None
    site.store.change_trial(replace(trial, dropped={"challenger-b": "<img src=x onerror=alert(1)>"}))
    try:
        page = visit("/trials/search-1")
        assert "<img src=x" in page.locator(".log").inner_text()
        assert page.locator(".log img").count() == 0
    finally:
        site.store.change_trial(trial)


@pytest.mark.parametrize("path", ["/trials", "/trials/search-1"])
def test_a_word_without_an_end_makes_no_phone_scroll_sideways(visit: Any, site: Site, path: str):
    trial = site.store.trial("search-1")
    assert trial is not None
    site.store.change_trial(replace(trial, dropped={"challenger-b": "x" * 500}))
    try:
        page = visit(path, width=390)
        # What a trial waits for names errors, which people and engines write.
        page.evaluate("document.querySelector('.lead, .card .quiet').textContent = 'y'.repeat(500)")
        assert page.evaluate("document.documentElement.scrollWidth") == 390
    finally:
        site.store.change_trial(trial)


def test_links_to_mlflow_and_its_absence_tell_no_password(tmp_path: Path):
    site = Site(tmp_path, "")
    trial = site.add(1, {"champion": 0.2, "challenger": 0.3})
    site.controller.mlflow_uri = "http://joe:hunter2@mlflow.example"
    with TestClient(build(site.controller)) as api:
        page = api.get(f"/trials/{trial.id}").text
    assert "http://mlflow.example/#/models/" in page
    with pytest.raises(RetryableError, match="MLFLOW_TRACKING_URI: http://127") as caught:
        require_mlflow("http://joe:hunter2@127.0.0.1:9")  # as `/healthz` says it to everybody
    assert "hunter2" not in page + str(caught.value)


def test_a_page_that_is_not_there_and_a_registry_that_is_away_are_said_in_a_line(site: Site):
    for path, status, said in (
        ("/trials/nothing-1", 404, "nothing-1: no such trial"),
        ("/trials/support-chat-1/else.svg", 404, "no such picture"),
        ("/trials/support-chat-1/record", 502, "MLFLOW_TRACKING_URI"),
        ("/api/trials/nothing-1", 404, "no such trial"),
    ):
        answer = httpx.get(f"{site.url}{path}", timeout=60)
        assert answer.status_code == status
        assert said in answer.text


def test_a_store_that_is_away_or_empty_is_said_in_a_line_by_every_page(tmp_path: Path):
    store = Store(f"sqlite:///{tmp_path / 'store.db'}")
    controller = Controller(store, OneReplica(store), "http://127.0.0.1:9")  # type: ignore[arg-type]
    with TestClient(build(controller)) as api:

        def said(path: str) -> str:
            answer = api.get(path)
            assert answer.status_code == 503
            assert "\n" not in answer.text
            return answer.text

        paths = ("/status", "/trials", "/trials/a-1", "/api/trials/a-1", "/trials/a-1/intervals.svg")
        for path in paths:
            assert "no pass is over yet: ask again in a moment" in said(path)
        controller.one_pass()
        assert api.get("/trials").status_code == 200
        with store.engine.begin() as connection:
            connection.exec_driver_sql("ALTER TABLE trials RENAME TO gone")
        for path in paths[1:]:
            assert "store: no such table: trials" in said(path)
