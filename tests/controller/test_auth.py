"""Who may speak to the controller: over real HTTP, on loopback without a token and elsewhere with one."""

from __future__ import annotations

import http.client
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import event

from seatrial.config.addresses import Addresses
from seatrial.config.secret import CONTROLLER_TOKEN, secret
from seatrial.controller.__main__ import access_of, server_config, trusted_proxies
from seatrial.controller.api import build
from seatrial.controller.auth import COOKIE, SESSION_S, TRIES, WINDOW_S, Access, Tries, session_of
from seatrial.controller.login import Gate, own_path
from seatrial.controller.loop import TIDY_EVERY_S, Controller
from seatrial.controller.sessions import Sessions
from seatrial.controller.webhooks import Receiver
from seatrial.errors import UserError
from seatrial.stack import status as stack_status
from seatrial.store import Store
from seatrial.submission import controller as asking
from tests.controller.chromium import browser
from tests.controller.one_replica import OneReplica
from tests.controller.server import serving
from tests.controller.test_process import START, environment, free_port

TOKEN = "a-token-of-at-least-32-characters-x"
GUARDED = ("/status", "/trials", "/trials/a-1", "/api/trials/a-1", "/web/style.css", "/nothing", "/")
BEARER = {"Authorization": f"Bearer {TOKEN}"}
BROWSER = {"Accept": "text/html,*/*"}


class Clock:
    now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


class Site:
    """The controller's API behind its gate."""

    def __init__(self, folder: Path, token: str | None) -> None:
        store = Store(f"sqlite:///{folder / 'store.db'}")
        store.migrate()
        serve: Any = OneReplica(store)
        self.controller = Controller(store, serve, "http://127.0.0.1:9")
        self.clock = Clock()
        api = build(self.controller, Receiver("s" * 32, self.controller.wake))
        self.store = store
        self.api = api
        self.gate = Gate(api, Access.of(token), Sessions(store), clock=self.clock)


@pytest.fixture(scope="module")
def shut_site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Site]]:
    site = Site(tmp_path_factory.mktemp("shut"), TOKEN)
    with serving(site.gate) as url:
        yield url, site


@pytest.fixture
def shut(shut_site: tuple[str, Site]) -> str:
    """The address of a controller with a token; wrong tokens of other tests are out of its window."""
    shut_site[1].clock.now += WINDOW_S + 1
    return shut_site[0]


@pytest.fixture(scope="module")
def open_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with serving(Site(tmp_path_factory.mktemp("open"), None).gate) as url:
        yield url


@contextmanager
def logged_in(url: str) -> Iterator[httpx.Client]:
    """A browser that has logged in."""
    with httpx.Client(base_url=url, headers=BROWSER) as browser:
        assert browser.post("/login", data={"token": TOKEN}, headers={"Origin": url}).status_code == 303
        yield browser


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


def test_over_https_the_session_never_travels_in_clear(tmp_path: Path):
    site = Site(tmp_path, TOKEN)
    with serving(Gate(site.api, Access.of(TOKEN), Sessions(site.store), is_https=True)) as url:
        answer = httpx.post(f"{url}/login", data={"token": TOKEN})
    assert "; secure" in answer.headers["set-cookie"].lower()


def test_a_session_ends_with_time_and_with_the_token():
    access = Access.of(TOKEN)
    session = access.session(1000.0)
    assert access.session_id(session, 1000.0 + SESSION_S - 1)
    assert not access.session_id(session, 1000.0 + SESSION_S + 1)
    assert not Access.of(TOKEN + "y").session_id(session, 1000.0)
    assert not Access.of(None).session_id(session, 1000.0)


@pytest.mark.parametrize("at", [0, 5, 12, -1])
def test_a_session_that_was_changed_is_none(at: int):
    access = Access.of(TOKEN)
    session = access.session(1000.0)
    changed = list(session)
    changed[at] = "1" if session[at] != "1" else "2"
    assert not access.session_id("".join(changed), 1000.0)
    for bad in ("", ".", "..", "9999999999", "9999999999..", "é.é.é"):
        assert not access.session_id(bad, 1000.0)


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://["},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {},
    ],
)
def test_another_site_cannot_use_a_persons_session(shut: str, headers: dict[str, str]):
    with logged_in(shut) as browser:
        assert browser.post("/logout", headers=headers).status_code == 403
        assert browser.get("/trials").status_code == 200


@pytest.mark.parametrize("other", ['prefs={"a": 1, "b": "x;y"}', "bad name=1", "=", "a=b=c", "\xff=\xfe"])
def test_cookies_of_other_servers_on_the_host_hide_no_session(other: str):
    access, now = Access.of(TOKEN), 1000.0
    session = access.session(now)
    for cookie in (f"{other}; {COOKIE}={session}", f"{COOKIE}={session}; {other}"):
        assert access.session_id(session_of({"cookie": cookie}), now)


def test_another_site_cannot_log_a_person_in(shut: str):
    answer = httpx.post(f"{shut}/login", data={"token": TOKEN}, headers={"Origin": "https://evil.example"})
    assert answer.status_code == 403
    assert "set-cookie" not in answer.headers


@pytest.mark.parametrize(
    "wanted",
    ["//evil.example", "https://evil.example", "/\\evil.example", "evil", "", "/\tevil", "javascript:x"],
)
def test_the_login_leads_nowhere_else(wanted: str):
    assert own_path(wanted) == "/trials"


@pytest.mark.parametrize("is_restarted", [False, True])
def test_a_copied_session_ends_with_the_logout_also_for_a_controller_started_anew(
    tmp_path: Path, is_restarted: bool
):
    site = Site(tmp_path, TOKEN)
    with serving(site.gate) as url, logged_in(url) as browser, logged_in(url) as colleague:
        copied = {"Cookie": f"{COOKIE}={browser.cookies[COOKIE]}"}
        assert httpx.get(f"{url}/status", headers=copied).status_code == 200
        assert browser.post("/logout", headers={"Origin": url}).status_code == 303
        again = Site(tmp_path, TOKEN) if is_restarted else site
        again.clock.now = site.clock.now
        with serving(again.gate) as other:
            assert httpx.get(f"{other}/status", headers=copied).status_code == 401
            left = {"Cookie": f"{COOKIE}={colleague.cookies[COOKIE]}"}
            assert httpx.get(f"{other}/status", headers=left).status_code == 200


def test_sessions_that_ran_out_are_tidied_away(tmp_path: Path):
    site = Site(tmp_path, TOKEN)
    site.controller.clock = site.clock
    with serving(site.gate) as url:
        for _ in range(3):
            with logged_in(url):
                pass
    held = "SELECT count(*) FROM leases WHERE name LIKE 'session:%'"
    with site.store.engine.connect() as connection:
        assert connection.exec_driver_sql(held).scalar() == 3
        connection.rollback()
        site.clock.now += SESSION_S + 2 * TIDY_EVERY_S + 1
        site.controller.one_pass()
        assert connection.exec_driver_sql(held).scalar() == 0


def test_what_is_no_session_of_ours_asks_no_store(tmp_path: Path):
    site = Site(tmp_path, TOKEN)
    asked: list[str] = []
    event.listen(
        site.store.engine, "before_cursor_execute", lambda _c, _u, statement, *_: asked.append(statement)
    )
    forged = Access.of(TOKEN + "y").session(site.clock.now)
    with serving(site.gate) as url:
        for value in (forged, "nonsense", f"9999999999.{'0' * 32}.{'0' * 64}"):
            assert httpx.get(f"{url}/status", headers={"Cookie": f"{COOKIE}={value}"}).status_code == 401
    assert asked == []


def test_while_the_store_is_away_nobody_is_taken_for_logged_in_or_out(tmp_path: Path):
    site = Site(tmp_path, TOKEN)
    with serving(site.gate) as url, logged_in(url) as browser:
        with site.store.engine.begin() as connection:
            connection.exec_driver_sql("ALTER TABLE leases RENAME TO away")
        answers = [browser.get("/status"), browser.post("/logout", headers={"Origin": url})]
        assert [each.status_code for each in answers] == [503, 503]
        assert "store" in answers[0].json()["error"]
        assert browser.cookies[COOKIE]
        refused = httpx.post(f"{url}/login", data={"token": TOKEN})
        assert (refused.status_code, "try again" in refused.text) == (503, True)
        assert browser.get("/healthz").json() == {"ok": False}
        assert httpx.get(f"{url}/status", headers=BEARER).status_code == 200
        with site.store.engine.begin() as connection:
            connection.exec_driver_sql("ALTER TABLE away RENAME TO leases")
        assert browser.get("/status").status_code == 200


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


def test_many_wrong_tokens_are_told_to_wait_and_the_right_one_is_never_refused(
    shut_site: tuple[str, Site], shut: str
):
    site = shut_site[1]
    for _ in range(TRIES):
        assert httpx.post(f"{shut}/login", data={"token": "guess"}).status_code == 401
    refused = httpx.post(f"{shut}/login", data={"token": "guess"})
    assert refused.status_code == 429
    assert 0 < int(refused.headers["retry-after"]) <= WINDOW_S + 1
    assert httpx.get(f"{shut}/status", headers={"Authorization": "Bearer guess"}).status_code == 429
    assert httpx.get(f"{shut}/status", headers=BEARER).status_code == 200
    assert httpx.post(f"{shut}/login", data={"token": TOKEN}).status_code == 303
    site.clock.now += WINDOW_S + 1
    assert httpx.post(f"{shut}/login", data={"token": "guess"}).status_code == 401


def test_a_clock_that_was_set_back_keeps_nobody_waiting():
    tries = Tries()
    for _ in range(TRIES):
        tries.add("10.0.0.1", 9000.0)
    assert tries.wait_s("10.0.0.1", 9000.0) > 0
    assert tries.wait_s("10.0.0.1", 1000.0) == 0


@pytest.mark.parametrize("is_trusted", [False, True])
def test_wrong_tokens_count_for_the_client_behind_a_proxy_that_is_trusted(tmp_path: Path, is_trusted: bool):
    """A client may write what it likes before the address that the proxy adds, which comes last."""
    config = server_config(Site(tmp_path, TOKEN).gate, trusted_proxies("127.0.0.1" if is_trusted else ""))
    with serving(config) as url:

        def guess(number: int, client: str) -> int:
            headers = {"X-Forwarded-For": f"192.0.2.{number}, {client}"}
            return httpx.post(f"{url}/login", data={"token": "guess"}, headers=headers).status_code

        assert [guess(number, "198.51.100.7") for number in range(TRIES + 1)] == [401] * TRIES + [429]
        assert guess(1, "198.51.100.8") == (401 if is_trusted else 429)


@pytest.mark.parametrize("text", ["proxy.example", "10.0.0.1/8", "127.0.0.1,*", "1.2.3"])
def test_a_trusted_proxy_that_is_no_address_is_refused(text: str):
    with pytest.raises(UserError, match="FORWARDED_ALLOW_IPS: "):
        trusted_proxies(text)


def test_proxies_are_addresses_or_networks():
    assert trusted_proxies(" 10.0.0.0/8, ::1 ,") == "10.0.0.0/8,::1"
    assert trusted_proxies("*") == "*"
    assert trusted_proxies("") == ""


def test_the_memory_of_guesses_is_bounded(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("seatrial.controller.auth.MOST_ADDRESSES", 100)
    tries = Tries()
    for number in range(1000):
        tries.add(f"10.0.0.{number}", 1000.0)
    assert len(tries._wrong) == 100


def test_a_form_that_is_too_long_is_not_read(shut: str):
    assert httpx.post(f"{shut}/login", content=b"token=" + b"x" * 10_000).status_code == 413


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
