"""Read and move the aliases of a registered model, as MLflow's own UI does.

MLflow has no compare-and-set and keeps no alias history, so a move reads the value it expects first and
reads its own value back afterwards: a person's move is noticed and left standing, but for one that reaches
MLflow in the milliseconds between that read and the write that follows it at once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from seatrial.errors import SeatrialError
from seatrial.registry.client import NotRegisteredError, asking, connect

if TYPE_CHECKING:
    from mlflow import MlflowClient


class AliasMovedError(SeatrialError):
    """Somebody else moved the alias: ``found`` is where it points now."""

    def __init__(self, name: str, alias: str, expected: str | None, found: str | None) -> None:
        self.found = found
        super().__init__(
            f"{name}@{alias}: expected version {expected or 'none'}, found {found or 'none'}: "
            "somebody else moved the alias, which is left as it is"
        )


def read(name: str, *, uri: str | None = None) -> dict[str, str]:
    """Alias → version number of the registered model.

    Raises:
        NotRegisteredError: there is no such registered model.
        RetryableError: MLflow does not answer.
    """

    return _read(connect(uri), name)


def _read(client: MlflowClient, name: str) -> dict[str, str]:
    def absent(_: str) -> NotRegisteredError:
        return NotRegisteredError(f"registered model {name!r}: not in the registry: register a version first")

    with asking(absent):
        model = client.get_registered_model(name)
    return {alias: str(version) for alias, version in model.aliases.items()}


def move(name: str, alias: str, version: str, *, expected: str | None, uri: str | None = None) -> None:
    """Point ``alias`` at ``version`` if it points at ``expected`` now; do nothing if it is there already.

    Raises:
        AliasMovedError: it points somewhere else, before or right after the write.
        NotRegisteredError: there is no such model or version.
        RetryableError: MLflow does not answer.
    """

    def absent(reason: str) -> NotRegisteredError:
        return NotRegisteredError(f"version: {version}: {reason}: give a version of {name!r}")

    client = connect(uri)
    found = _read(client, name).get(alias)
    if found == version:
        return
    if found != expected:
        raise AliasMovedError(name, alias, expected, found)
    with asking(absent):
        client.set_registered_model_alias(name, alias, version)
    _check(client, name, alias, version)


def remove(name: str, alias: str, *, expected: str | None, uri: str | None = None) -> None:
    """Delete ``alias`` if it points at ``expected``; do nothing if it is gone already.

    Raises:
        AliasMovedError: it points somewhere else, before or right after the write.
        NotRegisteredError: there is no such registered model.
        RetryableError: MLflow does not answer.
    """
    client = connect(uri)
    found = _read(client, name).get(alias)
    if found is None:
        return
    if found != expected:
        raise AliasMovedError(name, alias, expected, found)
    with asking():
        client.delete_registered_model_alias(name, alias)
    _check(client, name, alias, None)


def _check(client: MlflowClient, name: str, alias: str, wanted: str | None) -> None:
    found = _read(client, name).get(alias)
    if found != wanted:
        raise AliasMovedError(name, alias, wanted, found)
