"""Who goes on from whom in population-based training: trials are compared at equal steps. Pure."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Mapping

from seatrial_jobs.search.journal import Report, Trial


def donor(
    trials: Iterable[Trial],
    number: int,
    mine: Report,
    *,
    quantile: float,
    is_minimised: bool,
    chance: random.Random,
) -> tuple[int, Report] | None:
    """From which measurement of which trial the trial ``number`` goes on, or ``None``: it stays.

    ``mine`` is what it has just measured. Every trial counts with its newest measurement up to the same step,
    those that have ended too: how far somebody came meanwhile says nothing about who learns faster.
    """
    then = {number: mine}
    for trial in trials:
        if trial.number != number and trial.state != "failed" and (found := measured(trial, mine.step)):
            then[trial.number] = found
    sign = 1 if is_minimised else -1

    def rank(at: int) -> tuple[float, int]:
        value = sign * then[at].value
        return (value if math.isfinite(value) else math.inf, at)

    ranked = sorted(then, key=rank)
    share = min(math.ceil(len(ranked) * quantile), len(ranked) // 2)
    if number not in ranked[len(ranked) - share :]:
        return None
    better = [at for at in ranked[:share] if rank(at)[0] < rank(number)[0]]
    if not better:
        return None
    chosen = chance.choice(better)
    return chosen, then[chosen]


def measured(trial: Trial, step: int) -> Report | None:
    """The newest measurement up to ``step`` of the weights that the trial did not give up."""
    starts = [generation.origin.step if generation.origin else 0 for generation in trial.generations]
    kept = [
        report
        for report in trial.reports
        if report.step <= step and all(report.step <= later for later in starts[report.generation :])
    ]
    return max(kept, key=lambda report: (report.step, report.generation), default=None)


def slowest(trials: Mapping[int, Trial], count: int) -> float:
    """The step that the slowest of ``count`` trials has come to: older checkpoints are copied by nobody.

    Infinite when none runs any more.
    """
    if len(trials) < count:
        return 0
    return min((trial.reached for trial in trials.values() if trial.state == "running"), default=math.inf)
