"""What a search says while it runs: a line for each piece of news, events with progress and time left."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from seatrial.config.search import SearchSection
from seatrial_jobs.events import emit, say
from seatrial_jobs.search.journal import Journal, Origin, Trial, best


class Teller:
    """Tells news. Progress counts steps of all trials; one that was stopped counts as done."""

    def __init__(
        self,
        journal: Journal,
        search: SearchSection,
        steps: int,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._journal, self._count, self._steps = journal, search.count, steps
        self._metric, self._is_minimised, self._clock = search.metric, search.is_minimised, clock
        self._began = (clock(), self._done())

    def started(self, trial: Trial) -> None:
        """A new trial, or one that goes on."""
        say(f"{self._head(trial)}  {shown(trial.values)}")

    def reported(self, trial: Trial) -> None:
        """A measurement."""
        value = self._value(trial)
        say(f"{self._head(trial)}  step {trial.step}/{trial.steps}  {self._metric} {value}")
        self._progress()

    def exploited(self, trial: Trial, origin: Origin) -> None:
        """A trial that goes on from another's checkpoint."""
        emit("exploited", trial=trial.number, donor=origin.trial, step=origin.step, values=trial.values)
        say(
            f"{self._head(trial)}  goes on from trial {origin.trial} after step {origin.step}  "
            f"{shown(trial.values)}"
        )

    def lost(self, trial: Trial) -> None:
        """A trial whose process is gone, which starts again."""
        say(
            f"{self._head(trial)}  lost with its process or its machine after step {trial.step}: "
            "starts again from its newest checkpoint"
        )

    def ended(self, trial: Trial) -> None:
        """The end of a trial."""
        emit("trial", trial=trial.number, trials=self._count, state=trial.state, value=trial.value)
        why = f": {trial.cause}" if trial.cause else ""
        say(f"{self._head(trial)}  {trial.state} after step {trial.step}  {self._value(trial)}{why}")
        self._progress()

    def _head(self, trial: Trial) -> str:
        return f"trial {trial.number}/{self._count}"

    def _value(self, trial: Trial) -> str:
        return "" if trial.value is None else f"{trial.value:.4f}"

    def _progress(self) -> None:
        done, total = self._done(), self._count * self._steps
        left_s = time_left_s(self._began, (self._clock(), done), total)
        leader = best(self._journal.trials, is_minimised=self._is_minimised)
        emit(
            "progress",
            step=done,
            steps=total,
            best=leader and leader.number,
            value=leader and leader.value,
            eta_s=None if left_s is None else round(left_s),
        )

    def _done(self) -> int:
        return sum(
            min(trial.step, self._steps) if trial.state == "running" else self._steps
            for trial in self._journal.trials.values()
        )


def time_left_s(began: tuple[float, int], now: tuple[float, int], total: int) -> float | None:
    """Seconds to ``total`` at the rate between two (time, done) pairs; ``None`` before anything was done."""
    done = now[1] - began[1]
    return None if done <= 0 else (total - now[1]) * (now[0] - began[0]) / done


def shown(values: Mapping[str, Any]) -> str:
    """`run.learning_rate=0.003  method.rank=8`."""
    return "  ".join(
        f"{path}={value:.4g}" if isinstance(value, float) else f"{path}={value}"
        for path, value in values.items()
    )


def table(trials: Iterable[Trial], paths: Sequence[str], metric: str) -> list[list[str]]:
    """A header and a row for each trial, all of one width."""
    rows = [["trial", "state", "steps", metric, "from", *paths]]
    for trial in trials:
        origins = [g.origin.trial for g in trial.generations if g.origin is not None]
        rows.append(
            [
                str(trial.number),
                trial.state,
                str(trial.step),
                "" if trial.value is None else f"{trial.value:.4f}",
                ",".join(map(str, origins)),
                *(_cell(trial.values[path]) for path in paths),
            ]
        )
    return rows


def lines(rows: Sequence[Sequence[str]]) -> list[str]:
    """The table as text, its columns under each other."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    padded = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    return [line.rstrip() for line in padded]


def _cell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
