"""The dispatcher dies at each of its effects, before and after it, and another goes on."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from simulated import KilledError, World, cluster

from seatrial.store import Store
from seatrial.submission.rayjobs import RayJob

LOST = RayJob("FAILED", message="Job supervisor actor died", error_type="JOB_SUPERVISOR_ACTOR_DIED")


def armed(thing: Any, names: tuple[str, ...], countdown: list[int], *, after: bool) -> Callable[[], None]:
    """Let the process die at one of the calls, before or after its effect; the result takes that back."""
    originals = {name: getattr(thing, name) for name in names}

    def bomb(name: str) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            countdown[0] -= 1
            if countdown[0] == 0 and not after:
                raise KilledError(name)
            result = originals[name](*args, **kwargs)
            if countdown[0] == 0:
                raise KilledError(name)
            return result

        return call

    for name in names:
        setattr(thing, name, bomb(name))
    return lambda: [setattr(thing, name, call) for name, call in originals.items()] and None


WRITES = ("change_job", "note_jobs", "begin_attempt", "settle_attempt", "add_job")


def history(world: World, kill_at: int, *, after: bool) -> tuple[bool, dict[str, Any]]:
    """A life of six jobs in which the dispatcher dies at its ``kill_at``-th effect; whether it died."""
    world.ray.ends = lambda ray_id: LOST if ray_id in ("retried", "dep") else RayJob("SUCCEEDED", exit_code=0)
    world.ray.takes = lambda _: 20.0
    world.ray.nodes = cluster((2.0, 0.0))
    for name in ("plain", "retried", "dep", "waits"):
        world.add(name)
    world.add("child", after=("dep",))
    world.add("stopped")
    world.store.ask_job_stop("stopped")
    world.add("cron", cron="*/30 * * * *", state="scheduled")
    countdown, died = [kill_at], False
    for _ in range(200):
        undo_store = armed(world.store, WRITES, countdown, after=after)
        undo_ray = armed(world.ray, ("submit", "stop"), countdown, after=after)
        try:
            world.dispatcher.one_pass()
        except KilledError:
            died = True
            world.restart()
        finally:
            undo_ray()
            undo_store()
        world.now += 5.0
        if {job.state for job in world.store.unsettled_jobs()} == {"scheduled"}:
            break
    assert world.job("cron").message == "", "its one time has come and nothing was left out"
    jobs = {job.id: (job.state, job.attempt) for job in world.store.latest_jobs()}
    return died, jobs


EXPECTED = {
    "plain": ("succeeded", 0),
    "retried": ("succeeded", 1),
    "dep": ("succeeded", 1),
    "waits": ("succeeded", 0),
    "child": ("succeeded", 0),
    "stopped": ("stopped", 0),
    "cron": ("scheduled", 0),
    "cron-19700101-0000": ("succeeded", 0),
}


@pytest.mark.parametrize("after", [False, True])
def test_killed_at_any_effect_the_end_is_the_same_and_nothing_runs_twice(tmp_path: Path, after: bool) -> None:
    empty = tmp_path / "empty.db"
    first = Store(f"sqlite:///{empty}")
    first.migrate()  # once: it takes longer than a life
    first.close()
    kill_at, deaths = 0, 0
    while True:
        kill_at += 1
        fresh = Store(f"sqlite:///{shutil.copy(empty, tmp_path / f'{kill_at}.db')}")
        world = World(fresh, tmp_path)
        died, jobs = history(world, kill_at, after=after)
        assert jobs == EXPECTED, kill_at
        wanted = ["child", "cron-19700101-0000", "dep", "dep-r1", "plain", "retried", "retried-r1", "waits"]
        assert sorted(world.ray.known) == wanted, kill_at
        fresh.close()
        if not died:
            break
        deaths += 1
    assert deaths > 25
