"""Read and move the aliases of a registered model, as MLflow's own UI does.

MLflow has no compare-and-set and keeps no alias history, so a move reads the value it expects first and
reads its own value back afterwards: a person's move in between is noticed and left standing.
"""

from __future__ import annotations

from seatrial.errors import SeatrialError
from seatrial.registry.client import NotRegisteredError, asking, connect


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

    def absent(_: str) -> NotRegisteredError:
        return NotRegisteredError(f"registered model {name!r}: not in the registry: register a version first")

    client = connect(uri)
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

    found = read(name, uri=uri).get(alias)
    if found == version:
        return
    if found != expected:
        raise AliasMovedError(name, alias, expected, found)
    client = connect(uri)
    with asking(absent):
        client.set_registered_model_alias(name, alias, version)
    _check(name, alias, version, uri)


def remove(name: str, alias: str, *, expected: str | None, uri: str | None = None) -> None:
    """Delete ``alias`` if it points at ``expected``; do nothing if it is gone already.

    Raises:
        AliasMovedError: it points somewhere else, before or right after the write.
        NotRegisteredError: there is no such registered model.
        RetryableError: MLflow does not answer.
    """
    found = read(name, uri=uri).get(alias)
    if found is None:
        return
    if found != expected:
        raise AliasMovedError(name, alias, expected, found)
    client = connect(uri)
    with asking():
        client.delete_registered_model_alias(name, alias)
    _check(name, alias, None, uri)


def _check(name: str, alias: str, wanted: str | None, uri: str | None) -> None:
    found = read(name, uri=uri).get(alias)
    if found != wanted:
        raise AliasMovedError(name, alias, wanted, found)
