"""What the driver does when Ray Tune has news of a trial: note it, tell it, end its MLflow run."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from ray.tune import Callback

from seatrial.errors import SeatrialError
from seatrial.registry import runs
from seatrial.submission import screening
from seatrial_jobs.search.journal import Journal, Origin, Report, Trial
from seatrial_jobs.search.tell import Teller
from seatrial_jobs.search.trial import FAILED
from seatrial_jobs.storage import answering

CHECK_OWNER_EVERY_S = 10.0
STATE_TAG = "seatrial.trial_state"


class Observer(Callback):  # type: ignore[misc]
    """Keeps the journal and the trials' runs.

    ``check`` raises when another driver has taken over; ``tidy`` is called when a trial has come further.
    """

    def __init__(
        self,
        journal: Journal,
        teller: Teller,
        mlflow_uri: str,
        check: Callable[[], None],
        tidy: Callable[[], None],
        faults: list[SeatrialError],
    ) -> None:
        self._journal, self._teller, self._uri, self._faults = journal, teller, mlflow_uri, faults
        self._check, self._checked, self._tidy = check, time.monotonic(), tidy
        self._broken_off: Exception | None = None

    @contextmanager
    def _noting(self) -> Iterator[None]:
        """Keep an error on purpose, since Ray Tune hands on no more than its text."""
        try:
            yield
        except SeatrialError as error:
            self._faults.append(error)
            raise

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """A measured checkpoint, or the last step; that a trial failed is noted at its end."""
        if FAILED in result:
            return
        if time.monotonic() - self._checked > CHECK_OWNER_EVERY_S:
            with self._noting():
                self._check()
            self._checked = time.monotonic()
        report = Report(result["generation"], result["step"], result["value"], result["checkpoint"])
        found = self._mine(trial).with_report(report)
        self._put(found)
        self._teller.reported(found)
        self._tidy()

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """The end of a trial: it came to its last step, cannot, or was stopped by the scheduler."""
        found = self._mine(trial)
        if FAILED in trial.last_result:
            ended = replace(found, state="failed", cause=cause(trial.last_result[FAILED]))
        else:
            ended = replace(found, state="finished" if found.step >= found.steps else "stopped")
        try:
            self._end(ended)
        except Exception as error:
            self._broken_off = error
            raise

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial that was lost, which Tune starts again; it stays a running one.

        Raises:
            Exception: what broke off the end of a trial here, which Tune takes for the trial's own failure.
        """
        if self._broken_off is not None:
            raise self._broken_off
        self._teller.lost(self._mine(trial))

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial that was lost more often than the recipe allows.

        Raises:
            Exception: as :meth:`on_trial_recover`.
        """
        if self._broken_off is not None:
            raise self._broken_off
        self._end(replace(self._mine(trial), state="failed", cause=cause(trial.get_error())))

    def exploited(self, number: int, origin: Origin, values: dict[str, Any]) -> None:
        """A trial goes on from another's checkpoint."""
        found = self._journal.trials[number].with_origin(origin, values)
        self._put(found)
        self._complete(found)
        self._teller.exploited(found, origin)

    def _put(self, trial: Trial) -> None:
        with self._noting(), answering(self._journal.storage):
            self._journal.put(trial)

    def _end(self, trial: Trial) -> None:
        self._put(trial)
        self._tidy()
        tags = {STATE_TAG: trial.state} | ({runs.CAUSE: trial.cause} if trial.cause else {})
        status: runs.Status = "FAILED" if trial.state == "failed" else "FINISHED"
        if trial.state == "stopped":
            self._complete(trial)
        with self._noting():
            runs.finish(trial.run_id, status, tags=tags, uri=self._uri)
        self._teller.ended(trial)

    def _complete(self, trial: Trial) -> None:
        """Send what a trial that was stopped had measured and not sent yet: its workers are gone."""
        with self._noting():
            sent = {step for step, _ in runs.history(trial.run_id, "eval/loss", uri=self._uri)}
            now_ms = int(time.time() * 1000)
            measured = {r.step: r.value for r in trial.reports if r.step not in sent}
            points = [runs.Point("eval/loss", value, step, now_ms) for step, value in measured.items()]
            runs.log_points(trial.run_id, points, uri=self._uri)

    def _mine(self, trial: Any) -> Trial:
        return self._journal.trials[trial.config["trial"]]


def cause(error: object) -> str:
    """The last line of why a trial failed, without the name of the class that a lost one raises."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    last = lines[-1] if lines else "it ended without a word"
    return screening.redact(last.partition("TrialLostError: ")[2] or last)
