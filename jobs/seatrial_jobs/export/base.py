"""The model that a job starts from."""

from __future__ import annotations

from pathlib import Path

from seatrial.config.addresses import Addresses
from seatrial.registry import bases
from seatrial.registry.bases import LocalBase

__all__ = ["LocalBase", "resolve"]


def resolve(ref: str, revision: str | None, *, root: Path | None = None, uri: str | None = None) -> LocalBase:
    """Bring the model ``ref`` to this machine; registered ones come from the MLflow at ``uri``.

    Raises:
        UserError: there is no such model, it is no whole model, or it asks for remote code.
        RetryableError: MLflow does not answer.
    """
    cache = Addresses.resolve().home / "versions"
    return bases.resolve(ref, revision, field="model.base", cache=cache, root=root, uri=uri)
