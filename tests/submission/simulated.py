"""A cluster whose jobs take simulated time, and the dispatcher on it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from seatrial.errors import RetryableError, SeatrialError
from seatrial.store import Store
from seatrial.store.job import Job, Need, Spec
from seatrial.submission.dispatcher import Dispatcher, Places
from seatrial.submission.order import Cluster, Node, Room
from seatrial.submission.rayjobs import Group, Log, RayJob


def job(job_id: str = "a", **values: Any) -> Job:
    """A queued job of one worker with one CPU."""
    need = values.pop("need", Need())
    command = f"run {job_id}"
    spec = values.pop("spec", Spec(command, f"{command} again", recipe="r.yaml"))
    at = values.pop("at", 0.0)
    given = {"digest": job_id, "name": "x", "team": "default", "priority": 0, **values}
    return Job(id=job_id, spec=spec, need=need, submitted_at=at, ready_at=at, **given)


def gpus(workers: int, each: float = 1.0) -> Need:
    return Need(workers, 1.0, each)


def cluster(*nodes: tuple[float, float]) -> Cluster:
    """Nodes of so many CPUs and GPUs, all free."""
    return Cluster(tuple(Node(cpus, gpus, cpus, gpus) for cpus, gpus in nodes))


class KilledError(BaseException):
    """The dispatcher's process is gone."""


@dataclass
class SimulatedRay:
    """Ray's answers: a job runs for ``takes(id)`` seconds and ends as ``ends(id)`` says."""

    clock: Callable[[], float]
    nodes: Cluster = field(default_factory=lambda: cluster((4.0, 0.0)))
    takes: Callable[[str], float] = lambda _: 60.0
    ends: Callable[[str], RayJob] = lambda _: RayJob("SUCCEEDED", exit_code=0)
    known: dict[str, float] = field(default_factory=dict)
    commands: dict[str, str] = field(default_factory=dict)
    environments: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    reserved: dict[str, Room] = field(default_factory=dict)
    stopped: dict[str, float] = field(default_factory=dict)
    lines: dict[str, tuple[str, ...]] = field(default_factory=dict)
    leaked: list[Group] = field(default_factory=list)
    needs: Callable[[str], Need] = lambda _: Need()
    is_away: bool = False
    refuses: str = ""
    submissions: list[str] = field(default_factory=list)
    most_cpus: float = 0.0

    def jobs(self) -> dict[str, RayJob]:
        if self.is_away:
            raise RetryableError("ray: does not answer")
        return {each: self._seen(each) for each in self.known}

    def _seen(self, ray_id: str) -> RayJob:
        began, now = self.known[ray_id], self.clock()
        stopped = self.stopped.get(ray_id)
        end = began + self.takes(ray_id)
        if stopped is not None and stopped < end:
            return RayJob("STOPPED", began, stopped)
        if now < end:
            return RayJob("RUNNING", began, job_id=ray_id)
        return replace(self.ends(ray_id), started_at=began, ended_at=end)

    def running(self) -> list[str]:
        return [each for each in self.known if not self._seen(each).has_ended]

    def cluster(self) -> Cluster:
        left = list(self.nodes.nodes)
        for ray_id in self.running():
            need = self.needs(ray_id)
            for _ in range(need.workers):
                fits = [i for i, node in enumerate(left) if node.holds(need.cpus, need.gpus)]
                assert fits, f"{ray_id} was started without room"
                left[fits[0]] = left[fits[0]].take(need.cpus, need.gpus)
        return Cluster(tuple(left))

    def groups(self) -> list[Group]:
        needs = {each: self.needs(each) for each in self.running()}
        rooms = {each: Room(n.workers * n.cpus, n.workers * n.gpus) for each, n in needs.items()}
        return [*self.leaked, *(Group(f"group of {each}", each, room) for each, room in rooms.items())]

    def submit(
        self,
        ray_id: str,
        entrypoint: str,
        env: Mapping[str, Any],
        metadata: Mapping[str, str],
        reserved: Room,
    ) -> None:
        if self.refuses:
            raise SeatrialError(self.refuses)
        self.submissions.append(ray_id)
        if ray_id not in self.known:
            self.known[ray_id] = self.clock()
            self.commands[ray_id] = entrypoint
            self.environments[ray_id] = env
            self.reserved[ray_id] = reserved

    def stop(self, ray_id: str) -> None:
        self.stopped.setdefault(ray_id, self.clock())

    def log(self, ray_id: str) -> Log:
        return Log(self.lines.get(ray_id, ()))

    def put_package(self, name: str, body: bytes) -> None:
        raise AssertionError("no folder travels here")


class World:
    """A store, a clock that the test moves, a simulated Ray, and a dispatcher that can be killed."""

    def __init__(self, store: Store, home: Path) -> None:
        self.store, self.home, self.now = store, home, 1000.0
        self.ray = SimulatedRay(lambda: self.now)
        self.leads = True
        self.restart()

    def restart(self) -> None:
        """Another dispatcher, which knows nothing but the store."""
        places = Places("http://127.0.0.1:9", self.home)
        self.dispatcher = Dispatcher(
            self.store,
            self.ray,  # type: ignore[arg-type]
            places,
            leads=lambda: self.leads,
            clock=lambda: self.now,
        )

    def configure(self, **values: Any) -> None:
        (self.home / "jobs.yaml").write_text(yaml.safe_dump(values))

    def add(self, job_id: str, **values: Any) -> Job:
        made = job(job_id, at=self.now, **values)
        assert self.store.add_job(made)
        return made

    def tick(self, seconds: float = 1.0, times: int = 1) -> None:
        for _ in range(times):
            self.dispatcher.one_pass()
            self.now += seconds

    def state(self, job_id: str) -> str:
        found = self.store.job(job_id)
        assert found is not None
        return found.state

    def job(self, job_id: str) -> Job:
        found = self.store.job(job_id)
        assert found is not None
        return found
