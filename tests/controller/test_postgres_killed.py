"""PostgreSQL killed beside a running controller and a process that takes outcomes: nothing is lost."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from seatrial.config.service import ServiceConfig
from seatrial.controller.loop import Controller
from seatrial.experiments.trial import Trial
from seatrial.registry.client import connect
from seatrial.store import Store
from seatrial_serving.recorder import Recorder
from tests.controller.one_replica import OneReplica
from tests.store import postgres

pytestmark = pytest.mark.slow
NAME = "killed-store"
AWAY_S = 3.0

# Exposures and outcomes as a replica takes them; a line for each outcome that a client was told is kept.
CHILD = """
import asyncio, itertools, json, sys
from pathlib import Path
from seatrial_serving.outcomes import accept
from seatrial_serving.recorder import Recorder, store_of
exposure = json.loads(sys.argv[3])
async def main():
    recorder = Recorder(Path(sys.argv[1]), lambda: store_of(sys.argv[2]), flush_s=0.05)
    recorder.start()
    for number in itertools.count():
        name = f"r{number}"
        arm = ("champion", "challenger")[number % 2]
        recorder.exposed({**exposure, "request_id": name, "unit": f"u{number}", "arm": arm})
        told = {"request_id": name, "metric": "resolved", "value": 1}
        said = await accept(told, exposure["service"], recorder)
        assert json.loads(said)["accepted"] == 1
        print(name, flush=True)
        await asyncio.sleep(0.002)
asyncio.run(main())
"""


class Taker:
    """The process, and the requests whose outcome it has accepted so far."""

    def __init__(self, spool: Path, url: str, trial_id: str) -> None:
        row = {"trial_id": trial_id, "service": NAME, "sticky": True, "fallback": False}
        row |= {"assigned_version": "1", "served_version": "1", "status": 200, "at": time.time()}
        command = [sys.executable, "-c", CHILD, str(spool), url, json.dumps(row)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        self.told: list[str] = []
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        self.told.extend(line.strip() for line in self.process.stdout if line.endswith("\n"))

    def kill(self) -> None:
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.wait(30)
        self._reader.join(30)
        assert self.process.stdout is not None
        self.process.stdout.close()


def until(is_so: Callable[[], object], what: str, timeout_s: float = 60) -> None:
    deadline = time.monotonic() + timeout_s
    while not is_so():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


@contextmanager
def passing(controller: Controller) -> Iterator[None]:
    stop = threading.Event()
    loop = threading.Thread(target=controller.run, args=(stop,), kwargs={"poll_s": 0.2})
    loop.start()
    try:
        yield
    finally:
        stop.set()
        controller.wake()
        loop.join(30)


def requests_of(store: Store, table: str) -> Counter[str]:
    with store.engine.connect() as connection:
        return Counter(connection.execute(text(f"select request_id from {table}")).scalars())  # noqa: S608


def open_a_trial(store: Store, client: Any) -> Trial:
    """Of two versions, by a controller that runs."""
    client.create_registered_model(NAME)
    for alias in ("champion", "challenger"):
        run = client.create_run("0").info
        tags = {"seatrial.kind": "adapter", "seatrial.digest": alias}
        made = client.create_model_version(NAME, f"{run.artifact_uri}/model", run.run_id, tags=tags)
        client.set_registered_model_alias(NAME, alias, made.version)
    given = {"name": NAME, "engine": {"base": "models:/base/1"}, "http": {"allow_anonymous": True}}
    config = ServiceConfig.model_validate({**given, "trial": {"minimum_units": 10**6}})
    store.put_service(NAME, config.model_dump(mode="json"), now=time.time())
    until(lambda: store.latest_trial(NAME), "a trial")
    trial = store.latest_trial(NAME)
    assert trial is not None
    return trial


def die_and_come_back(database: postgres.Server, store: Store, controller: Controller, taker: Taker) -> None:
    """The database is away for some seconds, and what was told meanwhile is in it soon after."""
    until(lambda: len(requests_of(store, "outcomes")) > 200, "outcomes in the store")
    database.kill()
    before = len(taker.told)
    until(lambda: not controller.report.is_well, "the controller says that its store is away")
    time.sleep(AWAY_S)
    until(lambda: len(taker.told) > before + 100, "outcomes are taken while the store is away")
    database.start()
    told = set(taker.told)
    until(lambda: told <= requests_of(store, "outcomes").keys(), "the spool is replayed")


def test_outcomes_and_the_controller_outlive_the_death_of_postgresql(mlflow_uri: str, tmp_path: Path) -> None:
    with postgres.server() as database, closing(Store(database.url)) as store:
        store.migrate()
        client, serve = connect(mlflow_uri), OneReplica(store)
        controller = Controller(store, serve, mlflow_uri)  # type: ignore[arg-type]
        with passing(controller):
            trial = open_a_trial(store, client)
            taker = Taker(tmp_path / "spool", database.url, trial.id)
            try:
                die_and_come_back(database, store, controller, taker)
            finally:
                taker.kill()
            until(
                lambda: controller.report.is_well and not controller.report.errors, "the controller goes on"
            )
            client.set_registered_model_alias(NAME, "champion", "2")
            until(lambda: store.services()[NAME]["state"].get("served") == "2", "a promotion by hand")
        with closing(Recorder(tmp_path / "spool", lambda: store)) as heir:
            heir.replay_orphans()
        exposed, told = requests_of(store, "exposures"), requests_of(store, "outcomes")
        assert set(taker.told) <= exposed.keys() & told.keys()
        assert {*exposed.values(), *told.values()} == {1}
        found = store.evidence(trial, now=time.time()).arms
        assert sum(arm.exposures for arm in found) == len(exposed)
        assert sum(arm.outcomes for arm in found) == len(told)
        ended = store.trial(trial.id)
        assert ended is not None
        assert ended.verdict == "superseded"
