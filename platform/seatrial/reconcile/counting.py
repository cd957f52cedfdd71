"""Read the evidence of trials, however large, without keeping the store busy with it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from seatrial.experiments.evidence import Evidence
from seatrial.experiments.trial import Trial
from seatrial.reconcile.closing import look_at
from seatrial.store import Store

# At most a twentieth of the time goes into counting, unless a trial would not be looked at for a minute.
REST_PER_COST = 20.0
LONGEST_REST_S = 60.0


@dataclass(frozen=True)
class _Count:
    trial_id: str
    evidence: Evidence
    rest_s: float


class EvidenceReader:
    """Counts a trial anew once its last count is old enough for what it cost.

    What it keeps decides nothing: a verdict is only ever reached on evidence that was just read.
    """

    def __init__(self, store: Store, *, stopwatch: Callable[[], float] = time.perf_counter) -> None:
        self._store = store
        self._stopwatch = stopwatch
        self._counts: dict[str, _Count] = {}

    def read(self, trial: Trial, now: float) -> Evidence:
        """The trial's evidence, not older than a minute.

        Raises:
            RetryableError: the store does not answer.
        """
        last = self._counts.get(trial.service)
        if last is not None and last.trial_id == trial.id and _is_enough(last, trial, now):
            return last.evidence
        began = self._stopwatch()
        evidence = self._store.evidence(trial, now=now)
        rest_s = min(LONGEST_REST_S, REST_PER_COST * (self._stopwatch() - began))
        self._counts[trial.service] = _Count(trial.id, evidence, rest_s)
        return evidence


def _is_enough(count: _Count, trial: Trial, now: float) -> bool:
    is_young = 0 <= now - count.evidence.taken_at < count.rest_s
    return is_young and look_at(trial, count.evidence, now).verdict is None
