"""The driver's view of a running job: what MLflow has recorded of it, told as progress."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from seatrial.errors import SeatrialError
from seatrial.registry import runs
from seatrial_jobs.events import emit, say

POLL_EVERY_S = 2.0
CHECK_OWNER_EVERY_S = 10.0
END_S = 2.5
"""Seconds from the last step to the registered version, measurements left out; measured on 2 cores."""
FORWARD_SHARE = 1 / 3
"""A row's forward pass over its part of a step (Kaplan et al. 2020: 2 of 6 operations a weight)."""


@dataclass(frozen=True)
class Pace:
    """What a job still has to do, in units of one step. ``heldout_steps`` is a measurement's cost in them."""

    steps: int
    evaluate_every: int | None = None
    heldout_steps: float = 0.0

    @classmethod
    def of(cls, steps: int, evaluate_every: int | None, *, batch_rows: int, heldout_rows: int) -> Pace:
        """From a recipe's sizes."""
        return cls(steps, evaluate_every, FORWARD_SHARE * heldout_rows / batch_rows)

    def work(self, first: int, last: int) -> float:
        """Steps after ``first`` up to ``last``, and the measurements between; the end is always measured."""
        ends = 1 if last >= self.steps else 0
        every = self.evaluate_every
        between = 0 if not every else min(last, self.steps - 1) // every - min(first, self.steps - 1) // every
        return last - first + self.heldout_steps * (between + ends)

    def eta_s(self, first: tuple[int, float], last: tuple[int, float], now: float) -> float | None:
        """Seconds from ``now`` to the registered version, from two steps and when they ended."""
        done = self.work(first[0], last[0])
        if done <= 0:
            return None
        left = self.work(last[0], self.steps) * (last[1] - first[1]) / done
        return max(0.0, left + END_S - max(0.0, now - last[1]))


class Follower:
    """Tells the run's progress from a thread until it is stopped.

    ``check`` is called now and then and raises when this driver must stop; ``stop_job`` is then told why.
    """

    def __init__(
        self,
        run_id: str,
        mlflow_uri: str,
        pace: Pace,
        check: Callable[[], None],
        stop_job: Callable[[SeatrialError], None],
    ) -> None:
        self._run_id, self._uri, self._pace = run_id, mlflow_uri, pace
        self._check, self._stop_job = check, stop_job
        self._stopped = threading.Event()
        self._told = 0
        self._tags: dict[str, str] = {}
        self._first: tuple[int, float] | None = None  # the first progress seen: its step, and when that ended
        self._checked = time.monotonic()
        self._began = time.time()
        self._thread = threading.Thread(target=self._run, name="follower", daemon=True)

    def __enter__(self) -> Follower:
        self._tags = runs.tags_of(self._run_id, uri=self._uri)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.join(timeout=10)
        self._tell_quietly()

    def _run(self) -> None:
        while not self._stopped.wait(POLL_EVERY_S):
            self._tell_quietly()
            if time.monotonic() - self._checked > CHECK_OWNER_EVERY_S:
                self._checked = time.monotonic()
                try:
                    self._check()
                except SeatrialError as reason:
                    self._stop_job(reason)
                    return
                except OSError as error:
                    say(f"storage does not answer ({error}); training goes on")

    def _tell_quietly(self) -> None:
        try:
            self._tell()
        except SeatrialError as error:
            say(f"no progress to show: {error}")

    def _tell(self) -> None:
        latest, tags = runs.look_at(self._run_id, uri=self._uri)
        for name, tell in (
            ("seatrial.passed_over", _tell_passed_over),
            ("seatrial.preempted_at", _tell_preempted),
            ("seatrial.resized_at", _tell_resized),
            ("seatrial.resumed_at", _tell_resumed),
        ):
            if tags.get(name) not in (None, self._tags.get(name)):
                tell(tags[name])
                self._first = None  # the workers were away for a while
        self._tags = tags
        seen = latest.get("train/loss")
        if seen is None or seen.step <= self._told:
            return
        self._told = step = seen.step
        speed = latest.get("train/tokens_per_s")
        loss, tokens_per_s = seen.value, speed.value if speed else 0.0
        eta_s = self._eta_s(step, seen.at_ms / 1000)
        emit(
            "progress",
            step=step,
            steps=self._pace.steps,
            loss=round(loss, 4),
            tokens_per_s=round(tokens_per_s),
            eta_s=None if eta_s is None else round(eta_s),
        )
        left = "" if eta_s is None else f"  {eta_s:,.0f} s left"
        say(f"step {step}/{self._pace.steps}  loss {loss:.3f}  {tokens_per_s:,.0f} tokens/s{left}")

    def _eta_s(self, step: int, at: float) -> float | None:
        if at < self._began:  # a step of an earlier time
            return None
        if self._first is None:
            self._first = (step, at)
        return self._pace.eta_s(self._first, (step, at), time.time())


def _tell_passed_over(reasons: str) -> None:
    say(f"checkpoint passed over: {reasons}")


def _tell_preempted(step: str) -> None:
    emit("preempted", step=int(step))
    say(f"machines are taken away: kept step {step}, going on with others")


def _tell_resized(step: str) -> None:
    emit("resized", step=int(step))
    say(f"another number of workers: kept step {step}")


def _tell_resumed(step: str) -> None:
    emit("resumed", step=int(step))
    say(f"resumed after step {step}")
