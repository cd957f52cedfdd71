"""A training job that is killed again and again, and what must be true of it each time and at its end."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from seatrial.registry import runs, versions
from seatrial.registry.client import connect
from tests.jobs.job_processes import CURVES, Cluster, Job, launch

ONE, ALL, DRIVER, MIDWAY = KINDS = ("one worker", "all workers", "driver", "in a checkpoint")
STEP_S = 0.1
LONGEST_WAIT_S = 240.0


@dataclass(frozen=True)
class Point:
    """A kill, when ``step`` steps are done, or in the next checkpoint after them."""

    kind: str
    step: int


@dataclass(frozen=True)
class Shot:
    """What a kill came to. ``kind`` is what was really hit: a checkpoint may be complete just before."""

    kind: str
    done: int
    """Steps that any worker had done."""
    resumed: int
    """Steps of the checkpoint that the job went on from; 0 without one."""
    recover_s: float
    """From the kill to the end of the next step."""
    wrong: list[str]


@dataclass(frozen=True)
class Trace:
    """What a finished job has left behind."""

    curves: dict[str, dict[int, float]]
    """Determined metrics by step."""
    digest: str
    """Of the registered version's files."""
    wrong: list[str]


def plan(points: int, seed: int, *, steps: int, every: int, a_job: int) -> list[list[Point]]:
    """The kills of each job, by step; kinds take turns over all jobs."""
    chance = random.Random(seed)  # noqa: S311
    kinds = [KINDS[index % len(KINDS)] for index in range(points)]
    jobs = [kinds[start : start + a_job] for start in range(0, points, a_job)]
    moments = [sorted(chance.sample(range(1, steps - 3 * every), len(job))) for job in jobs]
    return [
        [Point(kind, step) for kind, step in zip(job, its_steps, strict=True)]
        for job, its_steps in zip(jobs, moments, strict=True)
    ]


class Victim:
    """A job whose workers tell their steps; its driver is run again when it was killed."""

    def __init__(
        self, cluster: Cluster, values: dict[str, Any], kept: Path, place: Path, chance: random.Random
    ) -> None:
        """``kept`` is where the recipe's storage is on this machine, ``place`` a folder for files."""
        self.cluster, self.values, self.place = cluster, values, place
        self.every = int(values["run"]["checkpoint_every"])
        self.drivers: list[Job] = []
        self._kept, self._chance = kept, chance
        self._dead: set[str] = set()
        self._told = place / "steps"
        self._told.mkdir()
        self._start()

    def _start(self) -> None:
        folder = self.place / f"driver-{len(self.drivers)}"
        folder.mkdir()
        program = (str(Path(__file__).parent / "told_train.py"),)
        self.drivers.append(launch(self.cluster, self.values, folder, program, str(self._told)))

    def kill(self, point: Point) -> Iterator[Shot]:
        """Kill at ``point``; in a checkpoint as often as it takes to hit one before its marker is there."""
        while True:
            yield (shot := self._kill(point))
            if shot.kind == point.kind:
                return

    def _kill(self, point: Point) -> Shot:
        self._wait(lambda: self._done(self._workers()) >= point.step)
        if point.kind == MIDWAY:
            self._wait(lambda: bool(self._under_way()), every_s=0.0005)
        else:
            time.sleep(self._chance.uniform(0, STEP_S))
        workers, began = self._workers(), time.monotonic()
        if point.kind == DRIVER:
            self.drivers[-1].kill()
            self._start()
        else:
            names = list(workers) if point.kind != ONE else [self._chance.choice(list(workers))]
            for name in names:
                os.kill(_pid(name), signal.SIGKILL)
        self._wait(lambda: not any(_runs(_pid(name)) for name in workers))
        kind = point.kind if point.kind != MIDWAY or self._under_way() else ALL
        done, sound = self._done({name: self._step(name) for name in workers}), self._sound()
        self._dead |= set(workers)
        self._wait(lambda: any(first for first, _ in self._workers().values()))
        recover_s = time.monotonic() - began
        resumed = min(first for first, _ in self._workers().values() if first) - 1
        return Shot(kind, done, resumed, recover_s, self._wrong(kind, done, resumed, sound))

    def _wrong(self, kind: str, done: int, resumed: int, sound: set[int]) -> list[str]:
        """What does not hold of a kill after ``done`` steps."""
        due, newest = done // self.every * self.every, max(sound, default=0)
        wrong = []
        if resumed != newest:
            wrong.append(
                f"{kind} at {done}: resumed after {resumed}; the newest sound checkpoint is {newest}"
            )
        if not due - self.every <= resumed <= due:
            wrong.append(f"{kind} at {done}: resumed after {resumed}: more than one checkpoint was lost")
        return wrong

    def finish(self, mlflow_uri: str) -> Trace:
        """Wait for the job's end."""
        code = self.drivers[-1].wait(LONGEST_WAIT_S)
        assert code == 0, "\n".join(self.drivers[-1].lines())
        wrong = []
        if len(told := {event["run_id"] for job in self.drivers for event in job.events("run")}) != 1:
            wrong.append(f"the job has had {len(told)} runs: {sorted(told)}")
        if left := self._under_way():
            wrong.append(f"files without a marker are left: {left}")
        trace = trace_of(self.drivers[-1], mlflow_uri)
        return Trace(trace.curves, trace.digest, wrong + trace.wrong)

    def close(self) -> None:
        """End the driver, if it still runs."""
        if self.drivers[-1].process.poll() is None:
            self.drivers[-1].kill()

    def _workers(self) -> dict[str, tuple[int, int]]:
        """First and last step of each worker that is not known to be dead; zeros before its first."""
        names = [name for name in os.listdir(self._told) if name not in self._dead]  # noqa: PTH208
        return {name: self._step(name) for name in names}

    def _step(self, name: str) -> tuple[int, int]:
        first, _, last = (self._told / name).read_bytes().partition(b" ")
        return int(first or 0), int(last or 0)

    def _done(self, workers: dict[str, tuple[int, int]]) -> int:
        return max((last for _, last in workers.values()), default=0)

    def _checkpoints(self) -> list[Path]:
        return [folder for folder in self._kept.glob("*/checkpoint-*") if folder.is_dir()]

    def _under_way(self) -> list[str]:
        """Checkpoints with files and without a marker."""
        found = {folder.name: set(os.listdir(folder)) for folder in self._checkpoints()}  # noqa: PTH208
        return [name for name, files in found.items() if files and "marker.json" not in files]

    def _sound(self) -> set[int]:
        """Steps of the checkpoints whose files are what their marker says, read by code of our own."""
        return {int(folder.name.split("-")[1]) for folder in self._checkpoints() if _is_sound(folder)}

    def _wait(self, condition: Callable[[], bool], *, every_s: float = 0.005) -> None:
        end = time.monotonic() + LONGEST_WAIT_S
        while not condition():
            if self.drivers[-1].process.poll() is not None or time.monotonic() > end:
                raise AssertionError("\n".join(self.drivers[-1].lines()))
            time.sleep(every_s)


def _is_sound(folder: Path) -> bool:
    try:
        digests = json.loads((folder / "marker.json").read_text())["sha256"]
        files = {name: (folder / name).read_bytes() for name in digests}
    except FileNotFoundError:
        return False
    return bool(files) and all(hashlib.sha256(files[name]).hexdigest() == digests[name] for name in files)


def _pid(name: str) -> int:
    return int(name.partition("-")[0])


def _runs(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def trace_of(job: Job, uri: str) -> Trace:
    """The curves and the version of a job that has ended."""
    run_id, version = job.events("run")[0]["run_id"], job.events("registered")[0]
    wrong, curves = [], {}
    for key in runs.latest(run_id, uri=uri):
        by_step: dict[int, set[float]] = defaultdict(set)
        for step, value in runs.history(run_id, key, uri=uri):
            by_step[step].add(value)
        wrong += [f"{key} of step {step} is {sorted(v)}" for step, v in by_step.items() if len(v) > 1]
        curves[key] = {step: min(values) for step, values in by_step.items()}
    if (status := connect(uri).get_run(run_id).info.status) != "FINISHED":
        wrong.append(f"the run is {status}")
    tags = versions.describe(version["name"], version["version"], uri=uri).tags
    return Trace({key: curves[key] for key in CURVES}, tags["seatrial.digest"], wrong)


def difference(mine: Trace, theirs: Trace) -> tuple[float, list[str]]:
    """The largest between two traces, and what besides values is not the same."""
    wrong = [] if mine.digest == theirs.digest else ["the version's weights are others"]
    largest = 0.0
    for key in CURVES:
        if mine.curves[key].keys() != theirs.curves[key].keys():
            wrong.append(f"{key}: other steps than the uninterrupted run's")
            continue
        largest = max([largest, *(abs(v - theirs.curves[key][s]) for s, v in mine.curves[key].items())])
    return largest, wrong
