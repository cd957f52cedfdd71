"""Wrong tokens: who is told to wait, behind a proxy too, and who never is."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from seatrial.controller.__main__ import server_config, trusted_proxies
from seatrial.controller.auth import TRIES, WINDOW_S, Tries
from seatrial.errors import UserError
from tests.controller.gate import BEARER, TOKEN, Site
from tests.controller.server import serving


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
