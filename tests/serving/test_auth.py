"""Who may call."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest

from seatrial.config.addresses import Addresses
from seatrial.config.service import HttpSection, KeySection, ServiceConfig
from seatrial.errors import UserError
from seatrial.submission import deploy
from seatrial_serving.auth import Keys, is_loopback, require_keys_off_loopback
from seatrial_serving.errors import HttpError

EVERYWHERE = "0.0.0.0"  # noqa: S104
ANONYMOUS = HttpSection(allow_anonymous=True)


def http(**keys: str) -> HttpSection:
    sections = [
        KeySection(name=name, sha256=hashlib.sha256(key.encode()).hexdigest()) for name, key in keys.items()
    ]
    return HttpSection(keys=tuple(sections))


def test_each_key_names_its_holder() -> None:
    keys = Keys(http(ann="k-ann", bob="k-bob"))
    assert keys.check(b"Bearer k-ann") == "ann"
    assert keys.check(b"bearer k-bob") == "bob"


@pytest.mark.parametrize(
    "header", [None, b"", b"Bearer", b"Bearer ", b"Bearer k-eve", b"Basic k-ann", b"k-ann"]
)
def test_anybody_else_is_refused(header: bytes | None) -> None:
    with pytest.raises(HttpError) as refused:
        Keys(http(ann="k-ann")).check(header)
    assert refused.value.status == 401
    assert "k-eve" not in refused.value.message


def test_a_service_without_keys_is_closed_unless_it_says_otherwise() -> None:
    closed = HttpSection.model_construct(keys=(), allow_anonymous=False)
    with pytest.raises(HttpError):
        Keys(closed).check(b"Bearer anything")
    assert Keys(ANONYMOUS).check(None) == "anonymous"
    assert Keys(ANONYMOUS).check(b"Bearer anything") == "anonymous"


@pytest.mark.parametrize(
    ("host", "origin"),
    [
        (b"127.0.0.1:8000", b"https://evil.example"),
        (b"127.0.0.1:8000", b"null"),
        (b"127.0.0.1:8000", b"http://127.0.0.1:9000"),
        (b"evil.example:8000", b"http://evil.example:8000"),
        (b"evil.example", None),
        (b"[", None),
    ],
)
def test_a_page_of_another_site_has_no_use_of_an_endpoint_without_keys(
    host: bytes, origin: bytes | None
) -> None:
    for key in (None, b"Bearer anything"):
        with pytest.raises(HttpError) as refused:
            Keys(ANONYMOUS).check(key, host=host, origin=origin)
        assert refused.value.status == 403
    assert Keys(http(ann="k-ann")).check(b"Bearer k-ann", host=host, origin=origin) == "ann"


@pytest.mark.parametrize("host", [b"127.0.0.1:8000", b"localhost:8000", b"[::1]:8000", b""])
def test_programs_here_and_own_pages_may_use_it(host: bytes) -> None:
    assert Keys(ANONYMOUS).check(None, host=host) == "anonymous"
    assert Keys(ANONYMOUS).check(None, host=host, origin=b"http://" + host) == "anonymous"


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", True),
        ("::1", True),
        ("localhost", True),
        (EVERYWHERE, False),
        (None, False),
        ("10.0.0.7", False),
        ("example.org", False),
    ],
)
def test_loopback_is_what_only_this_machine_reaches(host: str | None, expected: bool) -> None:
    assert is_loopback(host) is expected


def test_keys_are_mandatory_off_loopback() -> None:
    require_keys_off_loopback(ANONYMOUS, "127.0.0.1")
    require_keys_off_loopback(http(ann="k"), EVERYWHERE)
    with pytest.raises(UserError, match="allow_anonymous"):
        require_keys_off_loopback(ANONYMOUS, EVERYWHERE)


def test_deploy_refuses_what_the_replica_would(tmp_path: Path) -> None:
    values = {"name": "svc", "engine": {"base": "x"}, "http": both_ways()}
    config = ServiceConfig.model_validate(values)
    public = Addresses.resolve({"SEATRIAL_SERVE_URL": "https://models.example"}, tmp_path)
    with pytest.raises(UserError, match="allow_anonymous"):
        deploy.check(config, public, tmp_path / "service.yaml")
    with pytest.raises(UserError, match="allow_anonymous"):
        require_keys_off_loopback(config.http, EVERYWHERE)


def both_ways() -> dict[str, Any]:
    return {"keys": [{"name": "ann", "sha256": "0" * 64}], "allow_anonymous": True}
