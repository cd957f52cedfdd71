"""Who may speak to the controller: over real HTTP, on loopback without a token and elsewhere with one."""

from __future__ import annotations

import http.client
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from seatrial.config.addresses import Addresses
from seatrial.config.secret import CONTROLLER_TOKEN, secret
from seatrial.controller.__main__ import access_of
from seatrial.controller.auth import COOKIE
from seatrial.controller.login import own_path
from seatrial.errors import UserError
from seatrial.stack import status as stack_status
from seatrial.submission import controller as asking
from tests.controller.chromium import browser
from tests.controller.gate import BEARER, BROWSER, TOKEN, Site, logged_in
from tests.controller.server import serving
from tests.controller.test_process import START, environment, free_port

GUARDED = ("/status", "/trials", "/trials/a-1", "/api/trials/a-1", "/web/style.css", "/nothing", "/")


@pytest.fixture(scope="module")
def open_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with serving(Site(tmp_path_factory.mktemp("open"), None).gate) as url:
        yield url


@pytest.mark.parametrize("path", GUARDED)
def test_every_route_asks_for_the_token(shut: str, path: str):
    bare = httpx.get(f"{shut}{path}")
    assert (bare.status_code, bare.headers["www-authenticate"]) == (401, 'Bearer realm="seatrial"')
    assert httpx.get(f"{shut}{path}", headers={"Authorization": "Bearer wrong"}).status_code == 401
    assert httpx.get(f"{shut}{path}", headers={"Authorization": f"Basic {TOKEN}"}).status_code == 401
    assert httpx.get(f"{shut}{path}", headers=BEARER).status_code in (200, 307, 404)


def test_health_and_hints_ask_for_none(shut: str):
    assert httpx.get(f"{shut}/healthz").status_code == 503  # no pass is over yet
    unsigned = httpx.post(f"{shut}/hooks/mlflow", content=b"{}")
    assert unsigned.status_code == 401
    assert "X-MLflow-Signature" in unsigned.json()["error"]


@pytest.mark.parametrize(
    "path", ["//status", "/healthz/../status", "/login/../status", "/STATUS", "/%73tatus"]
)
def test_no_spelling_of_a_path_gets_round_the_gate(shut: str, path: str):

    with closing(http.client.HTTPConnection(shut.removeprefix("http://"))) as connection:
        connection.request("GET", path)
        answer = connection.getresponse()
        assert answer.status == 401
        assert b"services" not in answer.read()


def test_a_person_is_sent_to_the_login_and_back_to_where_they_wanted(shut: str):
    asked = httpx.get(f"{shut}/trials?a=b%20c", headers=BROWSER)
    assert (asked.status_code, asked.headers["location"]) == (303, "/login?next=%2Ftrials%3Fa%3Db%2520c")
    with httpx.Client(base_url=shut, headers=BROWSER) as browser:
        page = browser.get(asked.headers["location"])
        assert 'type="password"' in page.text
        assert browser.post(asked.headers["location"], data={"token": "wrong"}).status_code == 401
        answer = browser.post(asked.headers["location"], data={"token": TOKEN})
        assert (answer.status_code, answer.headers["location"]) == (303, "/trials?a=b%20c")
        cookie = answer.headers["set-cookie"].lower()
        assert "httponly" in cookie
        assert "samesite=strict" in cookie
        assert "secure" not in cookie
        assert TOKEN not in cookie
        assert browser.get("/trials").status_code == 200
        left = browser.post("/logout", headers={"Origin": shut})
        assert left.headers["location"] == "/login"
        assert browser.get("/trials").status_code == 303


@pytest.mark.parametrize(
    "wanted",
    ["//evil.example", "https://evil.example", "/\\evil.example", "evil", "", "/\tevil", "javascript:x"],
)
def test_the_login_leads_nowhere_else(wanted: str):
    assert own_path(wanted) == "/trials"


def test_strangers_are_told_how_it_is_and_nothing_else(tmp_path: Path):
    site = Site(tmp_path, TOKEN)
    site.controller.report = replace(
        site.controller.report, passes=3, at=site.clock.now, is_well=True, errors=("support-chat: secret",)
    )
    site.controller.clock = site.clock
    with serving(site.gate) as url, logged_in(url) as browser:
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Cookie": f"{COOKIE}=1.2.3"}):
            bare = httpx.get(f"{url}/healthz", headers=headers)
            assert (bare.status_code, bare.json()) == (200, {"ok": True})
        for known in (httpx.get(f"{url}/healthz", headers=BEARER), browser.get("/healthz")):
            assert known.json()["error"] == "support-chat: secret"
        site.clock.now += 10_000
        assert httpx.get(f"{url}/healthz").status_code == 503


def test_health_answers_while_pages_wait_for_a_slow_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    site, answers, asked = Site(tmp_path, TOKEN), threading.Event(), threading.Semaphore(0)

    def trials() -> list[Any]:
        asked.release()
        answers.wait(60)
        return []

    monkeypatch.setattr(site.store, "trials", trials)
    client = httpx.Client(limits=httpx.Limits(max_connections=None), headers=BEARER, timeout=60)
    with serving(site.gate) as url, client, ThreadPoolExecutor(60) as pool:
        try:
            pages = [pool.submit(client.get, f"{url}/trials") for _ in range(60)]
            for _ in range(40):  # as many threads as there are
                assert asked.acquire(timeout=30)
            assert client.get(f"{url}/healthz", timeout=5).json()["passes"] == 0
        finally:
            answers.set()
        assert {page.result().status_code for page in pages} == {200}


def test_on_loopback_nothing_is_asked_but_a_name_that_points_here_is_refused(open_url: str):
    port = open_url.rpartition(":")[2]
    assert httpx.get(f"{open_url}/status").status_code == 200
    assert httpx.get(f"{open_url}/status", headers={"Host": f"localhost:{port}"}).status_code == 200
    assert httpx.get(f"{open_url}/status", headers={"Host": f"[::1]:{port}"}).status_code == 200
    for host in (f"evil.example:{port}", "127.0.0.1.evil.example", "evil", "[", ""):
        refused = httpx.get(f"{open_url}/status", headers={"Host": host})
        assert refused.status_code == 403, host
        assert "services" not in refused.text


def test_on_loopback_another_site_cannot_send_anything_either(open_url: str):
    assert httpx.post(f"{open_url}/status", headers={"Origin": "https://evil.example"}).status_code == 403
    assert httpx.post(f"{open_url}/status").status_code == 405  # a program's


@pytest.mark.parametrize("path", ["/healthz", "/login", "/trials", "/status", "/nothing", "/web/icon.svg"])
def test_every_answer_keeps_browsers_safe(shut: str, path: str):
    for headers in (BEARER, {}):
        found = httpx.get(f"{shut}{path}", headers=headers).headers
        policy = found["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "script" not in policy
        assert "frame-ancestors 'none'" in policy or "sandbox" in policy
        assert (found["x-frame-options"], found["x-content-type-options"]) == ("DENY", "nosniff")
        assert found["cache-control"] == "no-store"
        assert "server" not in found or "uvicorn" in found["server"]


def test_the_command_line_sends_the_token(shut: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    addresses = Addresses.resolve({"SEATRIAL_CONTROLLER_URL": shut, "SEATRIAL_HOME": str(tmp_path)}, tmp_path)
    monkeypatch.delenv(CONTROLLER_TOKEN, raising=False)
    with pytest.raises(UserError, match="SEATRIAL_CONTROLLER_TOKEN: not set"):
        asking.status(addresses)
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    monkeypatch.setenv(f"{CONTROLLER_TOKEN}_FILE", str(tmp_path / "token"))
    assert asking.status(addresses)["services"] == []
    with pytest.raises(UserError, match="no such trial"):
        asking.trial(addresses, "nothing")


def test_the_state_of_the_parts_is_told_with_its_cause_to_who_has_the_token(
    shut: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    nowhere = {"MLFLOW_TRACKING_URI": "http://127.0.0.1:9", "RAY_API_SERVER_ADDRESS": "http://127.0.0.1:9"}
    env = {"SEATRIAL_CONTROLLER_URL": shut, "SEATRIAL_HOME": str(tmp_path), **nowhere}
    addresses = Addresses.resolve(env, tmp_path)
    monkeypatch.delenv(f"{CONTROLLER_TOKEN}_FILE", raising=False)
    for token, cause in ((TOKEN, "no pass is over yet"), (TOKEN + "y", "answers 503")):
        monkeypatch.setenv(CONTROLLER_TOKEN, token)
        part = {each.name: each for each in stack_status.read(addresses)}["controller"]
        assert part.health == "ill"
        assert cause in part.cause


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.1.2.3", "controller.example"])  # noqa: S104
def test_others_are_let_in_only_with_a_token(host: str):
    with pytest.raises(UserError, match="SEATRIAL_CONTROLLER_TOKEN: not set"):
        access_of(host, None)
    assert access_of(host, TOKEN).knows(TOKEN)
    for loopback in ("127.0.0.1", "::1", "localhost", "127.0.0.2"):
        assert access_of(loopback, None).digest is None


@pytest.mark.parametrize("value", ["short", "a token with spaces that is long enough", "ü" * 40])
def test_a_token_that_is_weak_or_no_header_is_refused_and_never_shown(tmp_path: Path, value: str):
    (tmp_path / "token").write_text(value)
    for env in ({CONTROLLER_TOKEN: value}, {f"{CONTROLLER_TOKEN}_FILE": str(tmp_path / "token")}):
        with pytest.raises(UserError, match="SEATRIAL_CONTROLLER_TOKEN") as caught:
            secret(CONTROLLER_TOKEN, env)
        assert value not in str(caught.value)


@pytest.mark.slow
def test_it_does_not_start_elsewhere_without_a_token_and_does_with_one(tmp_path: Path):
    port = free_port()
    env = environment(tmp_path, port, SEATRIAL_CONTROLLER_BIND=f"0.0.0.0:{port}")
    env = {name: value for name, value in env.items() if not name.startswith(CONTROLLER_TOKEN)}
    done = subprocess.run(START, env=env, capture_output=True, text=True, timeout=60)
    (line,) = done.stderr.splitlines()
    assert (done.returncode, line.partition(",")[0]) == (2, "seatrial: SEATRIAL_CONTROLLER_TOKEN: not set")
    process = subprocess.Popen(START, env={**env, CONTROLLER_TOKEN: TOKEN}, stderr=subprocess.DEVNULL)
    try:
        url, deadline = f"http://127.0.0.1:{port}", time.monotonic() + 60
        while True:
            try:
                assert httpx.get(f"{url}/status").status_code == 401
                if httpx.get(f"{url}/healthz").json()["ok"]:  # before that its store may have no tables
                    break
            except httpx.TransportError:
                pass
            assert time.monotonic() < deadline
            time.sleep(0.2)
        answer = httpx.get(f"{url}/status", headers=BEARER)
        assert (answer.status_code, answer.headers.get("server")) == (200, None)
    finally:
        process.kill()
        process.wait(30)


@pytest.mark.slow
def test_a_person_logs_in_with_a_browser_which_misses_nothing_on_the_pages(shut: str):
    with browser() as chromium:
        page = chromium.new_page()
        complaints: list[str] = []
        page.on("console", lambda message: complaints.append(message.text))
        page.goto(f"{shut}/trials")
        assert page.evaluate("getComputedStyle(document.querySelector('.home')).fontWeight") == "700"
        page.fill("#token", "wrong")
        page.click("button")
        assert page.inner_text("[role=alert]") == "That is not the token."
        page.fill("#token", TOKEN)
        page.click("button")
        page.wait_for_url(f"{shut}/trials")
        assert page.evaluate("getComputedStyle(document.querySelector('.home')).fontWeight") == "700"
        page.click("text=Log out")
        page.wait_for_url(f"{shut}/login")
        page.goto(f"{shut}/trials")
        page.wait_for_url(f"{shut}/login?next=%2Ftrials")
        assert not [text for text in complaints if "Content Security Policy" in text]
