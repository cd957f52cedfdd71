"""One trial, in an actor of Ray Tune: it starts the workers and reports each measured checkpoint."""

from __future__ import annotations

import json
import math
import threading
import uuid
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from seatrial.config.tune import TuneRecipe
from seatrial.errors import SeatrialError
from seatrial.registry import runs
from seatrial_jobs import ledger
from seatrial_jobs.checkpoints import checkpoint
from seatrial_jobs.loop import Schedule
from seatrial_jobs.search import lineage
from seatrial_jobs.search.journal import folder_of
from seatrial_jobs.spec import Spec
from seatrial_jobs.storage import Storage

LOOK_EVERY_S = 0.5
"""Seconds between two looks for new checkpoints."""
FAILED = "failed"
"""In a report: why the trial cannot end."""


class TrialFailedError(SeatrialError):
    """The trial cannot end; the others go on."""


class TrialLostError(SeatrialError):
    """What led the trial's workers is gone, as with its machine: the trial can be started again."""


@dataclass(frozen=True)
class Shared:
    """What all trials of a search have in common."""

    recipe: TuneRecipe
    template: Spec
    """As the search itself would be trained; the data is in the object store."""
    place: Storage
    """The search's storage."""


def run(config: dict[str, Any], shared: Shared) -> None:
    """Train with the values of ``config``: new, from another trial's checkpoint, or on from its own.

    Reports `step`, `value` and `checkpoint`: of the last step and, where the held-out loss is compared,
    of every checkpoint at which it was measured. A trial that cannot end reports `failed`, the cause, since
    Ray Tune starts again what raises.

    Raises:
        TrialLostError: it can end if it is started again.
    """
    from ray import tune

    try:
        _train(config, shared)
    except TrialLostError:
        raise
    except Exception as error:  # another start would most likely come to the same
        tune.report(failure(error))


def failure(error: Exception) -> dict[str, Any]:
    """The last report of a trial that cannot end. It has no `step`, so that no rung counts it."""
    cause = str(error) if isinstance(error, SeatrialError) else f"{type(error).__name__}: {error}"
    return {FAILED: cause, "value": math.nan, "done": True}


def _train(config: dict[str, Any], shared: Shared) -> None:
    from ray import tune

    spec, name = specify(config, shared)
    ledger.save(spec.storage, ledger.Record(attempt=spec.run_id, driver=spec.driver, run_id=spec.run_id))
    if config["generation"] > 1:
        adopt(config, shared, spec)
    compares = shared.recipe.search.metric == "eval/loss"  # the others are measured at the end only
    seen = {kept.name for kept in checkpoint.complete(spec.storage)}

    def report(step: int, value: float, name: str) -> None:
        found = {"step": step, "value": value, "checkpoint": name, "generation": config["generation"]}
        tune.report(found)

    def look() -> None:
        for kept in checkpoint.complete(spec.storage):
            if compares and kept.name not in seen and kept.heldout is not None:
                step = checkpoint.step_of(kept.name)
                report(step, kept.heldout, kept.name)
            seen.add(kept.name)

    training = Training(lambda: _fit(spec, shared.place, name))
    while not training.ended.wait(LOOK_EVERY_S):
        look()
    outcome = training.result()
    value = final_value(outcome, shared.recipe.search.metric)
    last = checkpoint.complete(spec.storage)[-1].name
    report(spec.steps, value, last)


def specify(config: dict[str, Any], shared: Shared) -> tuple[Spec, str]:
    """What the workers of a trial are told, and the name of its folder."""
    recipe = shared.recipe.with_values(config["values"])
    name = folder_of(config["trial"], config["generation"])
    asks = shared.recipe.search.metric != "eval/loss"
    spec = replace(
        shared.template,
        recipe=recipe,
        steps=config["steps"],
        questions=shared.template.questions if asks else [],
        storage=shared.place.below(name),
        # Of this start alone: workers of one that was lost may still be on their way out.
        driver=f"{config['driver']}-{config['generation']}-{uuid.uuid4().hex}",
        run_id=config["run_id"],
        export=False,
        tidies=shared.recipe.search.scheduler.type != "pbt",
    )
    return spec, name


def adopt(config: dict[str, Any], shared: Shared, spec: Spec) -> None:
    """Put the donor's checkpoint in place, unless a start before has, and note it on the trial's run."""
    fence(config, shared)
    if checkpoint.complete(spec.storage):
        return
    origin = config["origin"]
    donor = shared.place.below(folder_of(origin["trial"], origin["generation"]))
    schedule = Schedule.of(spec.recipe.run, spec.steps)
    name = lineage.adopt(donor, origin["checkpoint"], spec.storage, schedule)
    note = {
        "from_trial": origin["trial"],
        "checkpoint": name,
        "step": checkpoint.step_of(name),
        "values": config["values"],
        "sha256": lineage.digests(spec.storage, name),
    }
    tags = {f"seatrial.generation.{config['generation']}": json.dumps(note)}
    runs.set_tags(spec.run_id, tags, uri=spec.mlflow_uri)


def fence(config: dict[str, Any], shared: Shared) -> None:
    """Take the generation before away from workers that may still be on their way out."""
    before = shared.place.below(folder_of(config["trial"], config["generation"] - 1))
    driver = f"{config['driver']}-over"
    ledger.save(before, ledger.Record(attempt=config["run_id"], driver=driver, run_id=config["run_id"]))


def final_value(outcome: dict[str, Any], metric: str) -> float:
    """The measurement after the last step.

    Raises:
        TrialFailedError: training ended before, or there was nothing to measure, or it is no number.
    """
    if problem := outcome.get("user_error") or outcome.get("failed"):
        raise TrialFailedError(str(problem))
    value = outcome["scores"][metric.removeprefix("eval/")]
    if value is None:
        raise TrialFailedError(
            f"search.metric: {metric}: there are no held-out rows: set data.heldout or data.heldout_share"
        )
    if not math.isfinite(value):
        raise TrialFailedError(f"{metric} is {value}, which is no measurement")
    return float(value)


class Training:
    """A call in a thread of its own, which does not keep the process from ending."""

    def __init__(self, call: Callable[[], dict[str, Any]]) -> None:
        self.ended = threading.Event()
        self._call = call
        self._result: dict[str, Any] = {}
        self._error: Exception | None = None
        threading.Thread(target=self._run, name="training", daemon=True).start()

    def result(self) -> dict[str, Any]:
        """What the call returned.

        Raises:
            TrialLostError: an actor that the call waited for is gone.
            TrialFailedError: the call raised anything else.
        """
        from ray.exceptions import RayActorError

        if isinstance(self._error, RayActorError):
            raise TrialLostError(str(self._error)) from self._error
        if self._error is not None:
            raise TrialFailedError(str(self._error)) from self._error
        return self._result

    def _run(self) -> None:
        try:
            self._result = self._call()
        except Exception as error:  # raised again by `result`
            self._error = error
        finally:
            self.ended.set()


def _fit(spec: Spec, place: Storage, name: str) -> dict[str, Any]:
    from seatrial_jobs.workers import trainer

    found: dict[str, Any] = trainer.fit(lambda _: spec, place, name)
    return found
