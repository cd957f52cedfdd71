"""A job from recipe to version: prepare, open the run, train on Ray, pass the gate, register."""

from __future__ import annotations

import argparse
import json
import logging
import math
import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from seatrial.config.addresses import Addresses, without_passwords
from seatrial.config.load import load
from seatrial.config.recipe import PretrainRecipe, Recipe, TrainRecipe
from seatrial.errors import RetryableError, SeatrialError, UserError
from seatrial.registry import aliases, runs, versions
from seatrial.registry.manifest import BaseRef, Manifest
from seatrial.submission import screening
from seatrial_jobs import ledger
from seatrial_jobs.events import complain, emit, say
from seatrial_jobs.prepare import Prepared, prepare
from seatrial_jobs.storage import Storage, answering
from seatrial_jobs.usage import Usage

GATE_FAILED = 3
TERMINATED = 143  # 128 + SIGTERM
CODE_DIGESTS = "seatrial.code_digests"
"""Tag of a run that several states of the training code took part in: their digests, in order."""
NO_SUBMISSION = "none"
"""Stands in a run's tag for a driver that was started without Ray Jobs."""


class Terminated(BaseException):
    """Somebody asked this process to stop. ``reason`` is set when it was the job itself."""

    def __init__(self, reason: SeatrialError | None = None) -> None:
        self.reason = reason
        super().__init__(str(reason or "terminated"))


class JobFailedError(SeatrialError):
    """Training failed for good."""


@dataclass(frozen=True)
class Job:
    """A job whose data, place and run are known."""

    recipe: TrainRecipe | PretrainRecipe
    prepared: Prepared
    job_id: str
    place: Storage
    """All jobs' storage."""
    record: ledger.Record
    run: runs.Run
    mlflow_uri: str
    code_digest: str
    labels: Mapping[str, str] = field(default_factory=dict)
    """Tags of the version besides those of every version."""
    usage: Usage = field(default_factory=Usage)

    @property
    def storage(self) -> Storage:
        """This job's own storage."""
        return self.place.below(self.job_id)

    @property
    def target(self) -> str:
        """Registered model that receives the result."""
        return self.recipe.service if isinstance(self.recipe, TrainRecipe) else self.recipe.register_as


def main(
    kind: type[Recipe],
    program: str,
    arguments: Sequence[str],
    carry_out: Callable[[Job], int] | None = None,
) -> int:
    """Run the job of a recipe file; the exit code (2 user error, 3 gate not passed, 143 terminated).

    ``carry_out`` takes the job whose run is open and returns the exit code; a training job's when not given.
    """
    parser = argparse.ArgumentParser(prog=f"python -m {program}")
    parser.add_argument("recipe", type=Path, help="YAML file")
    parser.add_argument("--force", action="store_true", help="start again from nothing, finished or not")
    given = parser.parse_args(arguments)
    on_termination()
    _quiet()
    try:
        return _run(load(given.recipe, kind), Path.cwd(), carry_out or _carry_out, force=given.force)
    except SeatrialError as error:
        complain(without_passwords(str(error)))
        return error.exit_code
    except Terminated as stop:
        complain(str(stop.reason or "stopped; run the same command again to continue"))
        return 1 if stop.reason else TERMINATED


def _run(recipe: Any, root: Path, carry_out: Callable[[Job], int], *, force: bool) -> int:
    usage = Usage()
    screening.require_none_in(recipe)
    prepared = prepare(recipe, root)
    place = Storage.of(recipe.run.storage, root)
    job_id = ledger.job_id(recipe, prepared.split.digest, prepared.base_digest, prepared.tokens_digest)
    uri, code = _require_mlflow(), ledger.code_digest()
    with answering(place):
        record = ledger.take_over(place.below(job_id), force=force, code_digest=code)
    if record.version is not None:
        return _say_finished(recipe, job_id, record, code)
    job = replace(_open(recipe, prepared, place, job_id, record, uri, code), usage=usage)
    emit("run", url=job.run.url, run_id=job.run.run_id)
    say(f"run  {job.run.url}")
    _warn_of_other_code(record, code)
    try:
        with answering(place):
            ledger.save(job.storage, job.record)
        return carry_out(job)
    except Terminated as stop:
        if stop.reason is None:
            _end(job, "KILLED")
        raise
    except Exception as error:  # a bug too: its run must not look as if it went on
        _fail(job, error)
        raise
    finally:
        usage.write(job.run.run_id, submitted_with(os.environ), uri)


def _carry_out(job: Job) -> int:
    tell_plan(job)
    return conclude(job, train(job))


def _require_mlflow() -> str:
    from seatrial.registry.client import require_mlflow

    uri = Addresses.resolve().mlflow_uri
    require_mlflow(uri)
    return uri


def _say_finished(recipe: Any, job_id: str, record: ledger.Record, code: str) -> int:
    name = recipe.service if isinstance(recipe, TrainRecipe) else recipe.register_as
    emit("registered", name=name, version=record.version)
    told = f"job {job_id} is finished: it is version {record.version} of {name}"
    if other := record.of_other_code(code):
        say(f"{told}, made by other training code ({_shown(other)}): --force trains it again")
    else:
        say(f"{told} (--force runs it again)")
    emit("done")
    return 0


def _warn_of_other_code(record: ledger.Record, code: str) -> None:
    if other := record.of_other_code(code):
        say(
            f"warning: goes on from what other training code made ({_shown(other)}): "
            "--force trains all of it with this one"
        )


def _shown(digests: Sequence[str]) -> str:
    return ", ".join(digest[:12] for digest in digests)


def submitted_with(environment: Mapping[str, str]) -> Mapping[str, str]:
    """The metadata that this driver was submitted with, from what Ray Jobs gives to drivers; else nothing."""
    try:
        found = json.loads(environment.get("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}"))["metadata"]
        return {str(key): str(value) for key, value in found.items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}


def submission_id(environment: Mapping[str, str]) -> str | None:
    """Ray's id of the submission that this driver belongs to."""
    return submitted_with(environment).get("job_submission_id")


def _open(
    recipe: Any, prepared: Prepared, place: Storage, job_id: str, record: ledger.Record, uri: str, code: str
) -> Job:
    tags = {
        runs.JOB_ID: job_id,
        "seatrial.method": recipe.method.type if isinstance(recipe, TrainRecipe) else "pretrain",
        "seatrial.data_digest": prepared.split.digest,
        "seatrial.code_digest": code,
    }
    if prepared.base:
        tags |= {"seatrial.base": prepared.base.ref_pinned, "seatrial.base_digest": prepared.base.digest}
    tags |= code_labels(record)
    # Also where there is none: the run is not that of the job any more which it may have been.
    tags[runs.SUBMISSION_ID] = submission_id(os.environ) or NO_SUBMISSION
    run = runs.open_run(
        recipe.name,
        attempt=record.attempt,
        params=runs.flatten(ledger.identity(recipe)),
        tags=tags,
        settings=runs.flatten(ledger.operational(recipe)),
        known_run_id=record.run_id,
        uri=uri,
    )
    return Job(recipe, prepared, job_id, place, replace(record, run_id=run.run_id), run, uri, code)


def tell_plan(job: Job) -> None:
    """Say what will be read and done."""
    prepared, recipe = job.prepared, job.recipe
    for row in prepared.split.bad:
        say(f"left out  {row}")
    tokens = prepared.train.tokens
    emit(
        "plan",
        rows_read=prepared.split.rows_read,
        rows_kept=prepared.split.rows_kept,
        heldout=len(prepared.split.heldout),
        tokens=tokens,
        steps=prepared.steps,
        workers=recipe.resources.workers,
        device=recipe.resources.device,
        cut_documents=prepared.cut.documents,
        cut_tokens=prepared.cut.tokens,
    )
    say(
        f"plan {prepared.split.rows_kept:,} of {prepared.split.rows_read:,} rows, {tokens:,} tokens in "
        f"{prepared.train.rows:,} rows of {recipe.run.seq_tokens}, {prepared.steps:,} steps, "
        f"{recipe.resources.shown_workers} workers"
    )
    if prepared.cut.documents:
        say(
            f"cut  {prepared.cut.documents:,} documents are longer than run.seq_tokens and lose "
            f"{prepared.cut.tokens:,} tokens; {prepared.cut.responses:,} of them lose their response's end"
        )


def train(job: Job) -> Any:
    """Run the workers and return the first one's outcome.

    Raises:
        JobFailedError: it failed for good.
        Terminated: somebody stopped it.
    """
    import ray

    from seatrial_jobs.follow import Follower, Pace
    from seatrial_jobs.workers import trainer

    reasons: list[SeatrialError] = []

    def stop_job(reason: SeatrialError) -> None:
        reasons.append(reason)
        os.kill(os.getpid(), signal.SIGTERM)

    trainer.connect(job.recipe)
    on_termination()  # ray.init put its own handlers in place
    job.usage.gpus = trainer.needs(job.recipe).get("GPU", 0.0)
    check = partial(ledger.require_owner, job.storage, job.record.driver)
    prepared, run = job.prepared, job.recipe.run
    heldout_rows = prepared.heldout.rows if prepared.heldout else 0
    pace = Pace.of(prepared.steps, run.evaluate_every, batch_rows=run.batch_rows, heldout_rows=heldout_rows)
    try:
        with Follower(job.run.run_id, job.mlflow_uri, pace, check, stop_job):
            return trainer.fit(spec_of(job), job.place, job.job_id)
    except trainer.TrainingError as error:
        with answering(job.place):
            check()
        raise JobFailedError(str(error)) from error
    except Terminated:
        raise Terminated(reasons[0] if reasons else None) from None
    finally:
        ray.shutdown()


def spec_of(job: Job) -> Callable[[Any], Any]:
    """What the workers need; the data goes through the object store."""
    from seatrial_jobs.spec import Spec

    prepared = job.prepared
    base = prepared.base
    return lambda put: Spec(
        recipe=job.recipe,
        steps=prepared.steps,
        data=put((prepared.train, prepared.heldout)),
        questions=prepared.questions,
        base_path=str(base.path) if base else None,
        base=BaseRef(ref=base.ref_pinned, digest=base.digest) if base else None,
        tokenizer_files=prepared.tokenizer_files,
        storage=job.storage,
        driver=job.record.driver,
        run_id=job.run.run_id,
        mlflow_uri=job.mlflow_uri,
        data_digest=prepared.split.digest,
        code_digest=job.code_digest,
    )


def conclude(job: Job, outcome: Any) -> int:
    """Record the evaluation, and register the version if it passed the gate."""
    if outcome.get("user_error"):
        raise UserError(outcome["user_error"])
    if outcome["failed"]:
        raise JobFailedError(outcome["failed"])
    scores, reasons = outcome["scores"], outcome["reasons"]
    emit("evaluated", **scores)
    say("evaluated  " + "  ".join(f"{key} {value:.4g}" for key, value in scores.items() if value is not None))
    _keep_scores(job, scores)
    _keep_artifacts(job, outcome["samples"])
    emit("gate", passed=not reasons, reasons=reasons)
    if reasons:
        tags = {runs.GATE: "failed", runs.GATE_REASONS: "; ".join(reasons)}
        runs.finish(job.run.run_id, "FINISHED", tags=tags, uri=job.mlflow_uri)
        complain("not registered: " + "; ".join(reasons))
        return GATE_FAILED
    manifest = Manifest.model_validate_json(outcome["manifest"])
    version = versions.register(
        job.target, job.run.run_id, manifest, tags=_labels(job, scores), uri=job.mlflow_uri
    )
    if isinstance(job.recipe, PretrainRecipe):
        _first_champion(job, version)
    with answering(job.place):
        ledger.save(job.storage, replace(job.record, version=version))
    tags = {runs.GATE: "passed", "seatrial.version": f"{job.target}/{version}"}
    runs.finish(job.run.run_id, "FINISHED", tags=tags, uri=job.mlflow_uri)
    emit("registered", name=job.target, version=version)
    say(f"registered  models:/{job.target}/{version}")
    emit("done")
    return 0


def _labels(job: Job, scores: dict[str, float | None]) -> dict[str, str]:
    """Tags of the version, for people who compare versions in MLflow's pages."""
    found = {f"seatrial.eval.{key}": f"{value:.6g}" for key, value in scores.items() if value is not None}
    return {**found, **code_labels(job.record), runs.JOB_ID: job.job_id, **job.labels}


def code_labels(record: ledger.Record) -> dict[str, str]:
    """The tag that tells of several states of the training code, where there were some."""
    digests = record.code_digests
    return {CODE_DIGESTS: ", ".join(digests)} if len(digests) > 1 else {}


def _first_champion(job: Job, version: str) -> None:
    if "champion" not in aliases.read(job.target, uri=job.mlflow_uri):
        try:
            aliases.move(job.target, "champion", version, expected=None, uri=job.mlflow_uri)
        except aliases.AliasMovedError as error:
            say(str(error))


def _keep_scores(job: Job, scores: dict[str, float | None]) -> None:
    """Send scores that are not the ones recorded for the last step, as when the gate asks differently now."""
    step, known = job.prepared.steps, runs.latest(job.run.run_id, uri=job.mlflow_uri)
    now_ms = int(time.time() * 1000)
    found = {f"eval/{key}": value for key, value in scores.items() if value is not None}
    fresh = [
        runs.Point(key, value, step, now_ms)
        for key, value in found.items()
        if math.isfinite(value) and not _is_recorded(known.get(key), step, value)
    ]
    runs.log_points(job.run.run_id, fresh, uri=job.mlflow_uri)


def _is_recorded(known: tuple[int, float] | None, step: int, value: float) -> bool:
    return known is not None and known[0] == step and math.isclose(known[1], value, rel_tol=1e-6)


def _keep_artifacts(job: Job, samples: list[dict[str, str]]) -> None:
    from seatrial_jobs.pictures import loss_curves

    run_id, uri = job.run.run_id, job.mlflow_uri
    train, heldout, rate = (
        runs.history(run_id, key, uri=uri) for key in ("train/loss", "eval/loss", "train/learning_rate")
    )
    runs.log_picture(run_id, "loss.png", loss_curves(job.job_id, train, heldout, rate), uri=uri)
    if samples:
        table = {key: [row[key] for row in samples] for key in ("prompt", "reference", "answer")}
        runs.log_json(run_id, "samples.json", table, uri=uri)


def _fail(job: Job, error: Exception) -> None:
    """Note the cause on the run, unless the run belongs to another driver by now."""
    if isinstance(error, ledger.SupersededError):
        return
    text = str(error) if isinstance(error, SeatrialError) else f"{type(error).__name__}: {error}"
    cause = screening.redact(text.splitlines()[0])[:500]
    emit("failed", cause=cause)
    _end(job, "FAILED", {runs.CAUSE: cause})


def _end(job: Job, status: runs.Status, tags: Mapping[str, str] | None = None) -> None:
    """End a run whose job is over, whether MLflow answers or not."""
    try:
        runs.finish(job.run.run_id, status, tags=tags, uri=job.mlflow_uri)
    except RetryableError as problem:
        complain(f"the run keeps its status: {problem}")


def on_termination() -> None:
    """Raise :class:`Terminated` when somebody asks this process to stop; libraries put their own handlers."""

    def stop(number: int, _: object) -> None:
        signal.signal(number, signal.SIG_IGN)
        raise Terminated

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)


def _quiet() -> None:
    """Keep other libraries' chatter out of what the job says."""
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    for name in ("mlflow", "httpx", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
