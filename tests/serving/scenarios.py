"""What happens to a service under load: each does something to it and returns figures."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import httpx
from sqlalchemy import text

from seatrial_serving.recorder import CUT
from tests.serving import stage
from tests.serving.fire import RPS, SERVICE, Fire, hang, kill, kill_engine
from tests.serving.load import Load, under_load

CORRUPT_EVERY = 10
ROLL_BACK_EVERY = 7
CALM_S = 1.0
AWAY_S = 5.0


@contextmanager
def loaded(fire: Fire, rps: float = RPS) -> Iterator[Load]:
    """Clients at work, until each of them has had its last answer."""
    with under_load(fire.cluster.serve_url, SERVICE, rps=rps) as running:
        time.sleep(CALM_S)
        yield running
        time.sleep(CALM_S)


def swaps(fire: Fire, count: int) -> tuple[Load, dict[str, Any]]:
    """``count`` promotions by alias, every tenth to a version that cannot be loaded, some taken back."""
    is_corrupt = [index % CORRUPT_EVERY == CORRUPT_EVERY - 1 for index in range(count)]
    made = [fire.make(index + 1, corrupt=corrupt) for index, corrupt in enumerate(is_corrupt)]
    champion, took, rollbacks = fire.aliases()["champion"], [], 0
    with loaded(fire) as running:
        for index, version in enumerate(made):
            fire.alias("champion", version)
            if is_corrupt[index]:
                wait_refused(fire, version)
                fire.alias("champion", champion)
                continue
            took.append(fire.wait_served(version, running))
            if index % ROLL_BACK_EVERY == ROLL_BACK_EVERY - 1:
                fire.alias("champion", champion)
                took.append(fire.wait_served(champion, running))
                rollbacks += 1
            else:
                champion = version
    took.sort()
    figures = {"swaps": count, "corrupt": sum(is_corrupt), "rollbacks": rollbacks}
    median_s, slowest_s = round(took[len(took) // 2], 2), round(took[-1], 2)
    return running, {**figures, "median_swap_s": median_s, "slowest_swap_s": slowest_s, **running.summary()}


def wait_refused(fire: Fire, version: str) -> None:
    """Return when every replica has said that the version cannot be loaded."""

    def check() -> bool:
        rows = [row for row in fire.store.replicas(SERVICE) if row["app"] == SERVICE]
        fresh = [row for row in rows if time.time() - row["at"] < 5]
        return bool(fresh) and all(row["loaded"].get(version, "").startswith("error") for row in fresh)

    stage.wait_until(check, 60, f"the refusal of version {version}")


def replica_killed(fire: Fire) -> tuple[Load, dict[str, Any]]:
    """SIGKILL of one engine replica of two, in the middle of a trial."""
    challenger, since = fire.make(len(fire.made)), time.time()
    fire.alias("challenger", challenger)
    with loaded(fire) as running:
        fire.wait_served(challenger, running)
        at = time.monotonic()
        victim = fire.pids()[0]
        kill(victim)
        recovered_s = fire.wait_replicas(gone=victim)
    gap_s = running.longest_gap_s(at)
    wait_recorded(fire, "exposures", whole := in_trial(running))
    errors = errors_of(fire, since)
    fire.client.delete_registered_model_alias(SERVICE, "challenger")
    figures = {
        "recovered_s": round(recovered_s, 1),
        "gap_s": round(gap_s, 2),
        "whole_with_an_error": len(whole & errors.keys()),
        "cut_on_record": list(errors.values()).count(CUT["error"]),
    }
    return running, {**figures, **running.summary()}


def errors_of(fire: Fire, since: float) -> dict[str, str]:
    """The requests from ``since`` on that are on record with an error."""
    statement = text("select request_id, error from exposures where error is not null and at >= :since")
    with fire.store.engine.connect() as connection:
        return {row.request_id: row.error for row in connection.execute(statement, {"since": since})}


def controller_killed(fire: Fire) -> tuple[Load, dict[str, Any]]:
    """SIGKILL of the controller in the middle of a promotion."""
    version = fire.make(len(fire.made))
    with loaded(fire) as running:
        fire.alias("champion", version)
        time.sleep(0.7)  # it has seen the alias, and is somewhere on its way
        fire.controller.kill()
        time.sleep(AWAY_S)
        began = time.monotonic()
        fire.controller.start()
        fire.wait_served(version, running)
        recovered_s = time.monotonic() - began
    return running, {"recovered_s": round(recovered_s, 1), **running.summary()}


def mlflow_killed(fire: Fire) -> tuple[Load, dict[str, Any]]:
    """SIGKILL of MLflow; once it is back a promotion works."""
    version = fire.make(len(fire.made))
    with loaded(fire) as running:
        fire.mlflow.kill()
        time.sleep(AWAY_S)
        began = time.monotonic()
        fire.mlflow.start()
        started_s = time.monotonic() - began
        fire.alias("champion", version)
        promoted_s = fire.wait_served(version, running)
    figures = {"recovered_s": started_s + promoted_s, "mlflow_start_s": started_s, "promoted_s": promoted_s}
    return running, {**{name: round(value, 1) for name, value in figures.items()}, **running.summary()}


def store_away(fire: Fire) -> tuple[Load, dict[str, Any]]:
    """The store takes nothing for a while, in the middle of a trial: no exposure is lost."""
    challenger = fire.make(len(fire.made))
    fire.alias("challenger", challenger)
    with loaded(fire) as running:
        fire.wait_served(challenger, running)
        with locked(fire):
            time.sleep(AWAY_S)
        back = time.monotonic()
    wait_recorded(fire, "exposures", asked := in_trial(running))
    recovered_s = time.monotonic() - back
    fire.client.delete_registered_model_alias(SERVICE, "challenger")
    return running, {"recovered_s": round(recovered_s, 1), "exposures": len(asked), **running.summary()}


@contextmanager
def locked(fire: Fire) -> Iterator[None]:
    """Nobody else can read or write the store, which is SQLite's."""
    file = str(fire.store.engine.url.database)
    connection = sqlite3.connect(file, isolation_level=None, timeout=30)
    connection.execute("BEGIN EXCLUSIVE")
    try:
        yield
    finally:
        connection.execute("ROLLBACK")
        connection.close()


def postgres_killed(fire: Fire) -> tuple[Load, dict[str, Any]]:
    """SIGKILL of PostgreSQL in the middle of a trial: what clients were told is kept is there afterwards."""
    assert fire.database is not None, "this fire's store is SQLite"
    version, challenger = fire.make(len(fire.made)), fire.make(len(fire.made))
    fire.alias("challenger", challenger)
    with loaded(fire) as running, telling(fire, running) as told:
        fire.wait_served(challenger, running)
        fire.database.kill()
        killed, before = time.monotonic(), len(told)
        time.sleep(AWAY_S)
        assert before < len(told), "outcomes are taken while the store is away"
        began = time.monotonic()
        fire.database.start()
        started_s = time.monotonic() - began
        wait_recorded(fire, "exposures", in_trial(running))
        wait_recorded(fire, "outcomes", set(told))
        recovered_s = time.monotonic() - began
        fire.alias("champion", version)
        promoted_s = fire.wait_served(version, running)
        away_s = began - killed
    asked = in_trial(running)
    wait_recorded(fire, "exposures", asked)
    wait_recorded(fire, "outcomes", set(told))
    fire.client.delete_registered_model_alias(SERVICE, "challenger")
    figures = {"away_s": away_s, "database_start_s": started_s, "recovered_s": recovered_s}
    rounded = {name: round(value, 1) for name, value in {**figures, "promoted_s": promoted_s}.items()}
    return running, {**rounded, "exposures": len(asked), "outcomes": len(told), **running.summary()}


@contextmanager
def telling(fire: Fire, running: Load) -> Iterator[list[str]]:
    """Posts an outcome of each answer as soon as it is there; the requests whose outcome was accepted.

    Raises:
        httpx.HTTPError: an outcome was refused.
    """
    told: list[str] = []
    stop = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        work = pool.submit(_tell, fire, running, told, stop)
        try:
            yield told
        finally:
            stop.set()
        work.result()


def _tell(fire: Fire, running: Load, told: list[str], stop: threading.Event) -> None:
    headers = {"Authorization": f"Bearer {stage.KEY}"}
    with httpx.Client(base_url=fire.cluster.serve_url, headers=headers, timeout=30) as client:
        seen = 0
        while not stop.is_set():
            fresh = running.answers[seen:]
            seen += len(fresh)
            ids = [answer.request_id for answer in fresh if answer.problem is None]
            rows = [{"request_id": each, "metric": "noted", "value": 1} for each in ids]
            if rows:
                answer = client.post("/v1/outcomes", json={"outcomes": rows}).raise_for_status()
                assert answer.json() == {"accepted": len(rows), "rejected": []}
                told.extend(ids)
            time.sleep(0.1)


def in_trial(running: Load) -> set[str]:
    """The requests that were answered in a trial so far."""
    return {a.request_id for a in list(running.answers) if a.arm and a.problem is None}


def wait_recorded(fire: Fire, table: str, asked: set[str]) -> None:
    """Return when each of the requests has its row, and no request has two."""
    statement = text(f"select request_id from {table}")  # noqa: S608  # a name of this file's

    def read() -> Counter[str]:
        with fire.store.engine.connect() as connection:
            return Counter(connection.execute(statement).scalars())

    stage.wait_until(lambda: asked <= read().keys(), 60, f"{len(asked)} {table}")
    assert set(read().values()) <= {1}, "one request has one row"


def broken_challenger(fire: Fire) -> tuple[Load, dict[str, Any]]:
    """A challenger that crashes as it is loaded gets no request."""
    version = fire.make(0, corrupt=True)
    with loaded(fire) as running:
        fire.alias("challenger", version)
        wait_refused(fire, version)
        time.sleep(CALM_S)
        fire.client.delete_registered_model_alias(SERVICE, "challenger")
    return running, {"answers_of_it": running.versions[version], **running.summary()}


def shadowed(fire: Fire) -> tuple[Load, dict[str, Any]]:
    """Every request is copied to a shadow; its engine is stopped dead for nobody."""
    version = fire.make(len(fire.made))
    with loaded(fire) as running:
        fire.alias("shadow", version)
        stage.wait_until(lambda: _sum(fire, SHADOWED) > 0, 60, "answers of the shadow")
        fire.client.delete_registered_model_alias(SERVICE, "shadow")
    results = {
        result: _sum(fire, SHADOWED, result=result) for result in ("same", "different", "failed", "dropped")
    }
    return running, {"copies": results, "answers_of_it": running.versions[version], **running.summary()}


SHADOWED = "ray_seatrial_shadow_answers_total"


def _sum(fire: Fire, name: str, **labels: str) -> float:
    return sum(value for found, value in fire.metrics(name) if labels.items() <= found.items())


def failing_challenger(fire: Fire) -> tuple[Load, dict[str, Any]]:
    """A challenger in an application of its own that answers 500."""
    return _challenger_breaks(fire, kill_engine)


def hanging_challenger(fire: Fire) -> tuple[Load, dict[str, Any]]:
    """A challenger in an application of its own that answers nothing at all."""
    return _challenger_breaks(fire, hang)


def _challenger_breaks(fire: Fire, break_it: Callable[[int], None]) -> tuple[Load, dict[str, Any]]:
    version = fire.make_full()
    fire.alias("challenger", version)
    stage.wait_until(lambda: is_in_trial(fire, version), 300, "the trial")
    with loaded(fire) as running:
        fire.wait_served(version, running)
        at = time.time()
        victims = fire.pids(f"{SERVICE}--v{version}")
        for pid in victims:
            break_it(pid)
        began = time.monotonic()
        trial = fire.store.latest_trial(SERVICE)
        assert trial is not None
        stage.wait_until(lambda: "challenger" not in fire.aliases(), 120, "the rollback", 0.1)
        rolled_back_s = time.monotonic() - began
    seen_at = first_failure(fire, trial.id)
    looks = [look for look in fire.store.looks(trial.id) if look.at >= seen_at]
    decision = fire.store.decision(trial.id)
    assert decision is not None
    champions = [a for a in running.answers if a.arm != "challenger"]
    figures = {
        "decided_s": round(decision.decided_at - at, 1),
        "rolled_back_s": round(rolled_back_s, 1),
        "first_failure_s": round(seen_at - at, 1),
        "looks_from_then_on": len(looks),
        "verdict": decision.judgement.verdict,
        "champions_failed": sum(a.problem is not None for a in champions),
        "champions_slowest_s": round(max(a.ended - a.began for a in champions), 2),
    }
    return running, {**figures, **running.summary()}


def is_in_trial(fire: Fire, version: str) -> bool:
    """Whether the service's trial is of this challenger, and open."""
    trial = fire.store.latest_trial(SERVICE)
    return trial is not None and trial.state == "open" and version in trial.challengers.values()


def first_failure(fire: Fire, trial_id: str) -> float:
    """When the trial's first request was over that its arm had failed to answer."""
    statement = text(
        "select min(at + latency_s) from exposures where trial_id = :trial and (fallback or status >= 500)"
    )
    with fire.store.engine.connect() as connection:
        return float(connection.execute(statement, {"trial": trial_id}).scalar_one())
