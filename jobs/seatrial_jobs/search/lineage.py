"""Going on from another trial's checkpoint: its tensors and step are copied, the schedule is declared."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from seatrial.errors import SeatrialError
from seatrial_jobs.checkpoints import checkpoint
from seatrial_jobs.loop import Schedule
from seatrial_jobs.storage import Storage


class NoCheckpointError(SeatrialError):
    """The donor has no checkpoint to give."""


def adopt(donor: Storage, name: str, into: Storage, schedule: Schedule) -> str:
    """Copy the donor's checkpoint ``name``, or the one nearest to it when that is gone, into ``into``.

    Its digests are verified on the way; every tensor's bytes stay as they are. The schedule becomes
    ``schedule``, the declared mutation, and measurements that the donor has not sent stay with the donor.

    Returns:
        The name of the checkpoint, which it keeps.

    Raises:
        NoCheckpointError: the donor has none that holds.
    """
    wanted = checkpoint.step_of(name)
    present = [kept.name for kept in checkpoint.complete(donor)]
    present.sort(key=lambda other: (other != name, abs(checkpoint.step_of(other) - wanted)))
    problems = []
    for candidate in present:
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place)
            problem = checkpoint.fetch(donor, candidate, folder)
            if problem is None:
                heldout = _redeclare(folder / checkpoint.STATE, schedule)
                digests = checkpoint.upload(folder, into, candidate)
                checkpoint.mark(into, candidate, digests, heldout=heldout)
                return candidate
            problems.append(problem)
    reason = "; ".join(problems) or "it has none"
    raise NoCheckpointError(f"{donor.uri}: no checkpoint to go on from ({reason})")


def _redeclare(state: Path, schedule: Schedule) -> float | None:
    """Write the new schedule into a checkpoint's state; the held-out loss at its step."""
    content = json.loads(state.read_text(encoding="utf-8"))
    content |= {"schedule": vars(schedule), "unlogged": [], "left": None}
    state.write_text(json.dumps(content), encoding="utf-8")
    found = content.get("heldout")
    return None if found is None else float(found)


def digests(storage: Storage, name: str) -> dict[str, str]:
    """SHA-256 of each file of a checkpoint that holds tensors."""
    marker = storage.read_json(f"{name}/{checkpoint.MARKER}")
    return {file: digest for file, digest in marker["sha256"].items() if file.endswith(".safetensors")}
