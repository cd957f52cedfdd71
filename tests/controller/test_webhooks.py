"""MLflow's webhooks: signed hints that wake the loop, over real HTTP and from a real MLflow server."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.routing import Route

from seatrial.controller.api import build
from seatrial.controller.auth import Access
from seatrial.controller.login import Gate
from seatrial.controller.loop import Controller
from seatrial.controller.sessions import Sessions
from seatrial.controller.webhooks import (
    MOST_BYTES,
    PATH,
    TOLERANCE_S,
    Receiver,
    Seen,
    keep_registered,
    sign,
)
from seatrial.errors import RetryableError
from seatrial.registry import webhooks
from seatrial.registry.client import connect
from seatrial.store import Store
from tests.controller.one_replica import OneReplica
from tests.controller.server import serving

SECRET = "s" * 64
NOW = 1_800_000_000.0
BODY = b'{"entity": "model_version_alias", "action": "created", "data": {"name": "support-chat"}}'


def headers(
    body: bytes = BODY, *, id: str = "1", at: float | str = NOW, secret: str = SECRET
) -> dict[str, str]:
    """What MLflow sends with a body."""
    timestamp = at if isinstance(at, str) else str(int(at))
    signature = f"v1,{sign(secret, id, timestamp, body)}"
    return {"X-MLflow-Delivery-Id": id, "X-MLflow-Timestamp": timestamp, "X-MLflow-Signature": signature}


class Bell:
    """A receiver, and how often it has woken somebody."""

    def __init__(self) -> None:
        self.rung = 0
        self.now = NOW
        self.app = Starlette(
            routes=[
                Route(PATH, Receiver(SECRET, self.ring, clock=lambda: self.now).receive, methods=["POST"])
            ]
        )

    def ring(self) -> None:
        self.rung += 1


@pytest.fixture(scope="module")
def served() -> Iterator[tuple[str, Bell]]:
    bell = Bell()
    with serving(bell.app) as url:
        yield f"{url}{PATH}", bell


@pytest.fixture
def bell(served: tuple[str, Bell]) -> Bell:
    served[1].rung = 0
    served[1].now += 3 * TOLERANCE_S  # what other tests sent is out of the window
    return served[1]


def post(served: tuple[str, Bell], sent: dict[str, str], body: bytes = BODY) -> int:
    return httpx.post(served[0], content=body, headers=sent).status_code


def test_the_signature_is_the_one_that_mlflow_makes():
    from mlflow.webhooks.delivery import _generate_hmac_signature

    text = '{"name": "ünïcode"}'
    expected = _generate_hmac_signature(SECRET, "an-id", "1800000000", text)
    assert f"v1,{sign(SECRET, 'an-id', '1800000000', text.encode())}" == expected


def test_a_delivery_wakes_once_however_often_it_comes(served: tuple[str, Bell], bell: Bell):
    sent = headers(at=bell.now)
    assert [post(served, sent) for _ in range(3)] == [204, 409, 409]
    assert bell.rung == 1


def test_deliveries_in_any_order_and_with_any_content_each_wake(served: tuple[str, Bell], bell: Bell):
    for number, at in enumerate((bell.now, bell.now - 60, bell.now + 60)):
        body = b"\xff not JSON" if number else b""
        assert post(served, headers(body, id=str(number), at=at), body) == 204
    assert bell.rung == 3


@pytest.mark.parametrize("off_s", [-TOLERANCE_S - 1, TOLERANCE_S + 1])
def test_a_delivery_of_another_time_is_refused(served: tuple[str, Bell], bell: Bell, off_s: float):
    assert post(served, headers(at=bell.now + off_s)) == 401
    assert post(served, headers(at=bell.now + off_s * 0.99)) == 204
    assert bell.rung == 1


def test_forgeries_are_refused(served: tuple[str, Bell], bell: Bell):
    good = headers(at=bell.now)
    bad: list[dict[str, str]] = [
        {},
        headers(at=bell.now, secret="t" * 64),
        {**good, "X-MLflow-Delivery-Id": "2"},
        {**good, "X-MLflow-Timestamp": str(int(bell.now) + 1)},
        {**good, "X-MLflow-Signature": good["X-MLflow-Signature"].replace("v1", "v2")},
        {**good, "X-MLflow-Signature": good["X-MLflow-Signature"][:-4]},
        {**good, "X-MLflow-Signature": "v1,"},
        headers(id="x" * 200, at=bell.now),
        headers(at="soon"),
        headers(at="-1"),
        headers(at="1e9"),
        headers(at="9" * 400),
        *({name: value for name, value in good.items() if name != left_out} for left_out in good),
    ]
    assert [post(served, sent) for sent in bad] == [401] * len(bad)
    assert post(served, good, BODY + b" ") == 401
    assert bell.rung == 0
    assert post(served, good) == 204  # none of those has used its id up


def test_a_body_of_any_size_costs_little(served: tuple[str, Bell], bell: Bell):
    long = b"x" * (MOST_BYTES + 1)
    assert post(served, headers(long, at=bell.now), long) == 413

    def parts() -> Iterator[bytes]:
        for _ in range(5):
            yield b"x" * (MOST_BYTES // 4)

    assert httpx.post(served[0], content=parts(), headers=headers(at=bell.now)).status_code == 413
    assert httpx.get(served[0]).status_code == 405
    assert bell.rung == 0


def test_ids_are_kept_as_long_as_they_could_be_played_again_and_are_bounded():
    seen = Seen(most=3)
    assert seen.add("a", 1000.0)
    assert not seen.add("a", 1000.0 + 2 * TOLERANCE_S)
    assert seen.add("a", 1001.0 + 2 * TOLERANCE_S)
    assert seen.add("b", 1602.0)
    assert seen.add("c", 1603.0)
    assert not seen.add("d", 1604.0)
    assert seen.add("d", 1603.0 + 2 * TOLERANCE_S)


@pytest.fixture
def controller(tmp_path: Path) -> Iterator[Controller]:
    store = Store(f"sqlite:///{tmp_path / 'store.db'}")
    serve: Any = OneReplica(store)
    made = Controller(store, serve, "http://127.0.0.1:9")
    stop = threading.Event()
    thread = threading.Thread(target=made.run, args=(stop,), kwargs={"poll_s": 3600.0})
    thread.start()
    try:
        wait_for(lambda: made.report.passes == 1)
        yield made
    finally:
        stop.set()
        made.wake()
        thread.join(30)
        assert not thread.is_alive()


def wait_for(is_so: Any, timeout_s: float = 20.0) -> float:
    """Seconds until it is so."""
    began = time.monotonic()
    while not is_so():
        assert time.monotonic() - began < timeout_s
        time.sleep(0.01)
    return time.monotonic() - began


def test_a_delivery_makes_the_loop_look_at_once_and_a_forged_one_does_not(controller: Controller):
    receiver = Receiver(SECRET, controller.wake)
    with serving(Gate(build(controller, receiver), Access(), Sessions(controller.store))) as url:
        assert httpx.post(f"{url}{PATH}", content=BODY, headers=headers(secret="x" * 64)).status_code == 401
        time.sleep(0.3)
        assert controller.report.passes == 1
        sent = headers(at=time.time())
        assert httpx.post(f"{url}{PATH}", content=BODY, headers=sent).status_code == 204
        assert wait_for(lambda: controller.report.passes == 2) < 10.0
        assert httpx.post(f"{url}{PATH}", content=BODY, headers=sent).status_code == 409
        time.sleep(0.3)
        assert controller.report.passes == 2


def test_without_a_secret_there_is_no_receiver(controller: Controller):
    with serving(build(controller)) as url:
        assert httpx.post(f"{url}{PATH}", content=BODY, headers=headers(at=time.time())).status_code == 404


@pytest.mark.slow
def test_registering_again_leaves_one_webhook_for_each_address(mlflow_uri: str):
    client = connect(mlflow_uri)
    other = client.create_webhook("someone-elses", "http://127.0.0.1:9/x", ["registered_model.created"])
    url = "http://127.0.0.1:9/hooks/mlflow"
    for _ in range(2):
        webhooks.ensure(url, SECRET, uri=mlflow_uri)
    client.create_webhook("twice", url, ["model_version.created"])
    webhooks.ensure(url, SECRET, uri=mlflow_uri)
    mine = [each for each in client.list_webhooks() if each.url == url]
    assert len(mine) == 1
    assert {str(event) for event in mine[0].events} == set(webhooks.EVENTS)
    client.update_webhook(mine[0].webhook_id, status="DISABLED", events=["model_version.created"])
    webhooks.ensure(url, SECRET, uri=mlflow_uri, renew=False)
    (again,) = (each for each in client.list_webhooks() if each.url == url)
    assert again.status.is_active()
    assert {str(event) for event in again.events} == set(webhooks.EVENTS)
    before = again.last_updated_timestamp
    webhooks.ensure(url, SECRET, uri=mlflow_uri, renew=False)
    assert client.get_webhook(again.webhook_id).last_updated_timestamp == before
    assert client.get_webhook(other.webhook_id).name == "someone-elses"
    for each in (other, again):
        client.delete_webhook(each.webhook_id)


@pytest.mark.slow
def test_an_alias_that_is_set_or_taken_away_in_mlflow_wakes_the_loop(mlflow_uri: str, controller: Controller):
    with serving(
        Gate(build(controller, Receiver(SECRET, controller.wake)), Access(), Sessions(controller.store))
    ) as url:
        stop, address = threading.Event(), f"{url}{PATH}"
        keep = threading.Thread(
            target=keep_registered,
            args=(stop, address, SECRET),
            kwargs={"uri": mlflow_uri, "check_s": 0.2},
        )
        client = connect(mlflow_uri)
        keep.start()
        try:
            wait_for(lambda: any(each.url == address for each in client.list_webhooks()))
            client.create_registered_model("hinted")
            run = client.create_run("0").info
            version = client.create_model_version("hinted", f"{run.artifact_uri}/model", run.run_id).version
            client.set_registered_model_alias("hinted", "champion", version)
            assert wait_for(lambda: controller.report.passes == 2) < 10.0
            client.delete_registered_model_alias("hinted", "champion")
            assert wait_for(lambda: controller.report.passes == 3) < 10.0
            # Somebody deletes it: it comes back.
            (mine,) = (each for each in client.list_webhooks() if each.url == address)
            client.delete_webhook(mine.webhook_id)
            wait_for(lambda: any(each.url == address for each in client.list_webhooks()))
        finally:
            stop.set()
            keep.join(30)
            for each in client.list_webhooks():
                client.delete_webhook(each.webhook_id)


@pytest.mark.slow
def test_an_mlflow_that_refuses_the_address_or_is_away_is_said_once(
    mlflow_uri: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("seatrial.controller.webhooks.RETRY_S", 0.05)
    with pytest.raises(RetryableError, match="MLflow"):
        webhooks.ensure("ftp://127.0.0.1:9/hooks/mlflow", SECRET, uri=mlflow_uri)
    stop = threading.Event()
    threading.Timer(1.0, stop.set).start()
    keep_registered(stop, "ftp://127.0.0.1:9/hooks/mlflow", SECRET, uri=mlflow_uri)
    lines = [each.getMessage() for each in caplog.records if each.name.startswith("seatrial")]
    assert len(lines) == 1
    assert "scheme" in lines[0]
    assert SECRET not in lines[0]
