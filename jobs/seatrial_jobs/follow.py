"""The driver's view of a running job: what MLflow has recorded of it, told as progress."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from seatrial.errors import SeatrialError
from seatrial.registry import runs
from seatrial_jobs.events import emit, say

POLL_EVERY_S = 2.0
CHECK_OWNER_EVERY_S = 10.0


class Follower:
    """Tells the run's progress from a thread until it is stopped.

    ``check`` is called now and then and raises when this driver must stop; ``stop_job`` is then told why.
    """

    def __init__(
        self,
        run_id: str,
        mlflow_uri: str,
        steps: int,
        check: Callable[[], None],
        stop_job: Callable[[SeatrialError], None],
    ) -> None:
        self._run_id, self._uri, self._steps = run_id, mlflow_uri, steps
        self._check, self._stop_job = check, stop_job
        self._stopped = threading.Event()
        self._told = 0
        self._tags: dict[str, str] = {}
        self._rate: tuple[int, float] | None = None  # step and time of the first progress seen
        self._checked = time.monotonic()
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
        latest, tags = runs.look(self._run_id, uri=self._uri)
        for name, tell in (
            ("seatrial.passed_over", _tell_passed_over),
            ("seatrial.resumed_at", _tell_resumed),
        ):
            if tags.get(name) not in (None, self._tags.get(name)):
                tell(tags[name])
        self._tags = tags
        step, loss = latest.get("train/loss", (0, 0.0))
        if step <= self._told:
            return
        self._told = step
        tokens_per_s = latest.get("train/tokens_per_s", (0, 0.0))[1]
        eta_s = self._eta_s(step)
        emit(
            "progress",
            step=step,
            steps=self._steps,
            loss=round(loss, 4),
            tokens_per_s=round(tokens_per_s),
            eta_s=None if eta_s is None else round(eta_s),
        )
        left = "" if eta_s is None else f"  {eta_s:,.0f} s left"
        say(f"step {step}/{self._steps}  loss {loss:.3f}  {tokens_per_s:,.0f} tokens/s{left}")

    def _eta_s(self, step: int) -> float | None:
        now = time.monotonic()
        if self._rate is None:
            self._rate = (step, now)
        first_step, first_at = self._rate
        if step <= first_step:
            return None
        return (self._steps - step) * (now - first_at) / (step - first_step)


def _tell_passed_over(reasons: str) -> None:
    say(f"checkpoint passed over: {reasons}")


def _tell_resumed(step: str) -> None:
    emit("resumed", step=int(step))
    say(f"resumed after step {step}")
