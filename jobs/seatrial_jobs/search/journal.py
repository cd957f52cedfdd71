"""What a search has tried, in storage: enough to go on from after the driver is gone, as JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from seatrial.errors import UserError
from seatrial_jobs.storage import Storage

FILE = "trials.json"
State = Literal["running", "finished", "stopped", "failed"]


@dataclass(frozen=True)
class Origin:
    """The checkpoint of another trial that a trial went on from."""

    trial: int
    generation: int
    """Of the donor."""
    checkpoint: str
    step: int
    """The checkpoint's."""


@dataclass(frozen=True)
class Report:
    """One measurement of a trial."""

    generation: int
    step: int
    value: float
    checkpoint: str
    """The newest then; its name in the generation's storage."""


@dataclass(frozen=True)
class Generation:
    """A stretch of a trial with one set of values. Only population-based training has more than one."""

    values: dict[str, Any]
    """Field of the recipe → value."""
    origin: Origin | None = None


@dataclass(frozen=True)
class Trial:
    """One trial, from its first step on."""

    number: int
    """Counts from 1."""
    steps: int
    """Steps that its recipe asks for."""
    run_id: str
    """Its MLflow run."""
    generations: tuple[Generation, ...]
    state: State = "running"
    reports: tuple[Report, ...] = ()
    cause: str | None = None
    """Why it failed."""

    @property
    def generation(self) -> int:
        """Number of the generation that runs or ran last; counts from 1."""
        return len(self.generations)

    @property
    def values(self) -> dict[str, Any]:
        """The values of the last generation."""
        return self.generations[-1].values

    @property
    def step(self) -> int:
        """The last step that was measured."""
        return self.reports[-1].step if self.reports else 0

    @property
    def reached(self) -> int:
        """The step of its present weights when they were last measured, or copied."""
        last, origin = self.reports[-1:], self.generations[-1].origin
        if last and last[0].generation == self.generation:
            return last[0].step
        return origin.step if origin else 0

    @property
    def value(self) -> float | None:
        """The last measurement."""
        return self.reports[-1].value if self.reports else None

    def with_report(self, report: Report) -> Trial:
        """One more measurement; after a resume it takes the place of those that it repeats."""
        kept = [r for r in self.reports if (r.generation, r.step) < (report.generation, report.step)]
        return replace(self, reports=(*kept, report))

    def with_origin(self, origin: Origin, values: dict[str, Any]) -> Trial:
        """A further generation that goes on from another trial's checkpoint."""
        return replace(self, generations=(*self.generations, Generation(values, origin)))


def id_of(number: int) -> str:
    """What Ray Tune, its schedulers and MLflow know a trial by."""
    return f"{number:03d}"


def folder_of(number: int, generation: int) -> str:
    """Where a trial's generation keeps its checkpoints, below the search's storage."""
    return f"trial-{id_of(number)}-{generation}"


@dataclass
class Journal:
    """Every trial of a search by number, written to storage at each change."""

    storage: Storage
    trials: dict[int, Trial] = field(default_factory=dict)

    @classmethod
    def read(cls, storage: Storage) -> Journal:
        """The journal kept in ``storage``, empty when there is none.

        Raises:
            UserError: it is damaged.
        """
        try:
            found = storage.read_json(FILE) or []
            return cls(storage, {each["number"]: _trial(each) for each in found})
        except (ValueError, TypeError, KeyError) as error:
            raise UserError(
                f"run.storage: {storage.uri}/{FILE}: damaged ({error}): start again with --force"
            ) from error

    def try_again(self, count: int, *, is_minimised: bool) -> None:
        """Have trials that failed go on, where all ``count`` have ended and none to any use: whoever runs the
        search again has mended what they failed of."""
        has_ended = len(self.trials) >= count and all(t.state != "running" for t in self.trials.values())
        if not has_ended or best(self.trials, is_minimised=is_minimised) is not None:
            return
        for trial in list(self.trials.values()):
            if trial.state == "failed":
                self.put(replace(trial, state="running", cause=None))

    def put(self, trial: Trial) -> None:
        """Add or replace a trial."""
        self.trials[trial.number] = trial
        self.storage.write_json(FILE, [asdict(each) for each in self.trials.values()])


def best(trials: Mapping[int, Trial], *, is_minimised: bool) -> Trial | None:
    """The best of the trials that ran to their end, by the last measurement; of equal ones the first.

    One that measured no number is never the best.
    """
    ended = {
        trial.number: trial.value
        for trial in trials.values()
        if trial.state == "finished" and trial.value is not None and math.isfinite(trial.value)
    }
    sign = 1 if is_minimised else -1
    found = min(ended, key=lambda number: (sign * ended[number], number), default=None)
    return None if found is None else trials[found]


def _trial(value: dict[str, Any]) -> Trial:
    generations = tuple(
        Generation(each["values"], Origin(**each["origin"]) if each["origin"] else None)
        for each in value["generations"]
    )
    reports = tuple(Report(**each) for each in value["reports"])
    return Trial(**{**value, "generations": generations, "reports": reports})
