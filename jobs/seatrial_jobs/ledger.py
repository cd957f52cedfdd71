"""A job's identity and its record in storage: which MLflow run is its own, who drives it, how it ended."""

from __future__ import annotations

import errno
import hashlib
import json
import uuid
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from seatrial.config.recipe import Recipe
from seatrial.errors import SeatrialError, UserError
from seatrial_jobs.storage import Storage

RECORD = "mlflow_run.json"
UNKNOWN = "unknown"
"""Stands for the code of a time when records did not tell it."""
# Fields that change where and how comfortably a job runs, but not the weights it arrives at.
OPERATIONAL = {
    "resources": True,
    "gate": True,
    "run": {
        "storage",
        "max_failures",
        "checkpoint",
        "keep_checkpoints",
        "keep_best_checkpoints",
        "checkpoint_every",
        "evaluate_every",
        "accumulate",
    },
    "search": {"max_concurrent"},
}


class SupersededError(SeatrialError):
    """Another driver has taken the job over; this one must not write any more."""


@dataclass(frozen=True)
class Record:
    """The contents of :data:`RECORD`."""

    attempt: str
    """New for each run of the job from nothing; the MLflow run carries it as a tag."""
    driver: str
    """The driver that owns the job: the last one that started."""
    run_id: str | None = None
    version: str | None = None
    """Set when the job has registered its result, which is when it is finished."""
    code_digests: list[str] = field(default_factory=list)
    """Of the training code that has taken part, in order; empty where it is not known."""

    def of_other_code(self, code_digest: str) -> list[str]:
        """The digests that are not ``code_digest``, in order."""
        return [digest for digest in self.code_digests or [UNKNOWN] if digest != code_digest]


def identity(recipe: Recipe) -> dict[str, Any]:
    """The fields that shape the weights."""
    return recipe.model_dump(mode="json", exclude=OPERATIONAL)  # type: ignore[arg-type]


def operational(recipe: Recipe) -> dict[str, Any]:
    """The other fields: they may differ each time that the job runs."""
    return recipe.model_dump(mode="json", include=OPERATIONAL)  # type: ignore[arg-type]


def job_id(recipe: Recipe, data_digest: str, base_digest: str, tokens_digest: str) -> str:
    """Name and digest of everything that shapes the weights: the same inputs are the same job."""
    text = json.dumps([identity(recipe), data_digest, base_digest, tokens_digest], sort_keys=True)
    return f"{recipe.name}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def code_digest() -> str:
    """SHA-256 of the sources of this package."""
    root = Path(__file__).parent
    total = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        total.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    return total.hexdigest()


def take_over(storage: Storage, *, force: bool, code_digest: str | None = None) -> Record:
    """Become the driver of the job kept in ``storage``.

    A finished job is returned as it is. With ``force``, finished or not, everything that is kept of it goes
    and it starts from nothing, as a new attempt. ``code_digest``, where given, takes part from now on.

    Raises:
        UserError: its record is damaged.
    """
    if force:
        storage.clear()
    found = read(storage)
    if found is not None and found.version is not None:
        return found
    before = found or Record(attempt=uuid.uuid4().hex, driver="")
    mine = replace(before, driver=uuid.uuid4().hex)
    if code_digest is not None:
        # A folder is a checkpoint, or a trial's: without one, no code has trained anything that is left.
        known = (before.code_digests or [UNKNOWN]) if storage.folders() else []
        mine = replace(mine, code_digests=[*known, code_digest] if known[-1:] != [code_digest] else known)
    save(storage, mine)
    return mine


def read(storage: Storage) -> Record | None:
    """The record in ``storage``, if there is one.

    Raises:
        UserError: it is damaged.
    """
    try:
        value = storage.read_json(RECORD)
        return None if value is None else Record(**_known(value))
    except (ValueError, TypeError) as error:
        raise UserError(
            f"run.storage: {storage.uri}/{RECORD}: damaged ({error}): start again with --force"
        ) from error


def _known(value: dict[str, Any]) -> dict[str, Any]:
    """Without what only newer code keeps.

    Raises:
        TypeError: it is no record at all.
    """
    if not isinstance(value, dict):
        raise TypeError(f"{type(value).__name__} in place of an object")
    names = {each.name for each in fields(Record)}
    return {name: each for name, each in value.items() if name in names}


def save(storage: Storage, record: Record) -> None:
    """Write the record."""
    storage.write_json(RECORD, asdict(record))


def require_owner(storage: Storage, driver: str) -> None:
    """Check that ``driver`` still owns the job.

    Raises:
        SupersededError: a later driver has taken it over.
        FileNotFoundError: there is no record, as where a mount is away.
    """
    found = read(storage)
    if found is None:
        raise FileNotFoundError(errno.ENOENT, "no record of the job", f"{storage.uri}/{RECORD}")
    if found.driver != driver:
        raise SupersededError(f"{storage.uri}: another driver has taken this job over: this one stops")
