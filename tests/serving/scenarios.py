"""What happens to a service under load: each does something to it and returns figures."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import text

from tests.serving import stage
from tests.serving.fire import RPS, SERVICE, Fire, kill
from tests.serving.load import Load, under_load

CORRUPT_EVERY = 10
ROLL_BACK_EVERY = 7
CALM_S = 2.0
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
    """SIGKILL of one engine replica of two."""
    with loaded(fire) as running:
        at = time.monotonic()
        victim = fire.pids()[0]
        kill(victim)
        recovered_s = fire.wait_replicas(gone=victim)
    gap_s = running.longest_gap_s(at)
    return running, {"recovered_s": round(recovered_s, 1), "gap_s": round(gap_s, 2), **running.summary()}


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
        fire.alias("champion", version)
        fire.wait_served(version, running)
        recovered_s = time.monotonic() - began
    return running, {"recovered_s": round(recovered_s, 1), **running.summary()}


def store_away(fire: Fire) -> tuple[Load, dict[str, Any]]:
    """The store takes nothing for a while, in the middle of a trial: no exposure is lost."""
    challenger = fire.make(len(fire.made))
    fire.alias("challenger", challenger)
    with loaded(fire) as running:
        fire.wait_served(challenger, running)
        with locked(fire):
            time.sleep(AWAY_S)
        back = time.monotonic()
    recovered_s = wait_exposures(fire, running, back)
    fire.client.delete_registered_model_alias(SERVICE, "challenger")
    figures = {"exposures": sum(1 for answer in running.answers if answer.arm)}
    return running, {"recovered_s": round(recovered_s, 1), **figures, **running.summary()}


@contextmanager
def locked(fire: Fire) -> Iterator[None]:
    """Nobody else can read or write the store."""
    connection = sqlite3.connect(fire.cluster.home / "store.db", isolation_level=None, timeout=30)
    connection.execute("BEGIN EXCLUSIVE")
    try:
        yield
    finally:
        connection.execute("ROLLBACK")
        connection.close()


def wait_exposures(fire: Fire, running: Load, since: float) -> float:
    """Seconds from ``since`` until every answer of a trial is a row of the store, and none is twice."""
    expected = sum(1 for answer in running.answers if answer.arm and answer.problem is None)

    def count() -> int:
        with fire.store.engine.connect() as connection:
            return int(connection.execute(text("select count(*) from exposures")).scalar_one())

    stage.wait_until(lambda: count() >= expected, 60, f"{expected} exposures")
    assert count() == expected, "each answer is one exposure"
    return time.monotonic() - since


def broken_challenger(fire: Fire) -> tuple[Load, dict[str, Any]]:
    """A challenger whose weights cannot be loaded gets no request."""
    version = fire.make(0, corrupt=True)
    with loaded(fire) as running:
        fire.alias("challenger", version)
        wait_refused(fire, version)
        time.sleep(CALM_S)
        fire.client.delete_registered_model_alias(SERVICE, "challenger")
    return running, {"answers_of_it": running.versions[version], **running.summary()}
