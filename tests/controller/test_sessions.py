"""Who has logged in, and until when: sessions over real HTTP, and what other sites make of them."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest
from sqlalchemy import event

from seatrial.controller.auth import COOKIE, SESSION_S, Access, session_of
from seatrial.controller.login import Gate
from seatrial.controller.loop import TIDY_EVERY_S
from seatrial.controller.sessions import Sessions
from tests.controller.gate import BEARER, TOKEN, Site, logged_in
from tests.controller.server import serving


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
