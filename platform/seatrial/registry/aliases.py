"""Read and move the aliases of a registered model, as MLflow's own UI does.

MLflow has no compare-and-set and keeps no alias history, so a move reads the value it expects first and
reads its own value back afterwards: a person's move in between is noticed and left standing.
"""

from __future__ import annotations

from seatrial.errors import SeatrialError, UserError
from seatrial.registry.client import connect


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
        UserError: there is no such registered model.
    """
    from mlflow.exceptions import MlflowException

    try:
        model = connect(uri).get_registered_model(name)
    except MlflowException as error:
        raise UserError(
            f"registered model {name!r}: not in the registry: register a version first"
        ) from error
    return {alias: str(version) for alias, version in model.aliases.items()}


def move(name: str, alias: str, version: str, *, expected: str | None, uri: str | None = None) -> None:
    """Point ``alias`` at ``version`` if it points at ``expected`` now; do nothing if it is there already.

    Raises:
        AliasMovedError: it points somewhere else, before or right after the write.
        UserError: there is no such version.
    """
    from mlflow.exceptions import MlflowException

    found = read(name, uri=uri).get(alias)
    if found == version:
        return
    if found != expected:
        raise AliasMovedError(name, alias, expected, found)
    try:
        connect(uri).set_registered_model_alias(name, alias, version)
    except MlflowException as error:
        raise UserError(f"version: {version}: {error.message}: give a version of {name!r}") from error
    _check(name, alias, version, uri)


def remove(name: str, alias: str, *, expected: str | None, uri: str | None = None) -> None:
    """Delete ``alias`` if it points at ``expected``; do nothing if it is gone already.

    Raises:
        AliasMovedError: it points somewhere else, before or right after the write.
    """
    found = read(name, uri=uri).get(alias)
    if found is None:
        return
    if found != expected:
        raise AliasMovedError(name, alias, expected, found)
    connect(uri).delete_registered_model_alias(name, alias)
    _check(name, alias, None, uri)


def _check(name: str, alias: str, wanted: str | None, uri: str | None) -> None:
    found = read(name, uri=uri).get(alias)
    if found != wanted:
        raise AliasMovedError(name, alias, wanted, found)
