"""Seatrial's errors as MLflow's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from click import ClickException
from mlflow.exceptions import MlflowException
from mlflow.protos import databricks_pb2 as codes

from seatrial.errors import ConfigError, RetryableError, SeatrialError, UserError
from seatrial.registry.aliases import AliasMovedError
from seatrial.registry.client import NotRegisteredError

# The first that fits.
CODES = (
    (NotRegisteredError, codes.RESOURCE_DOES_NOT_EXIST),
    (UserError, codes.INVALID_PARAMETER_VALUE),
    (RetryableError, codes.TEMPORARILY_UNAVAILABLE),
    (AliasMovedError, codes.RESOURCE_CONFLICT),
    (SeatrialError, codes.INTERNAL_ERROR),
)


class DeploymentError(MlflowException, ClickException):  # type: ignore[misc]
    """MLflow's error, which its command line prints as one line in place of a traceback."""

    def __init__(self, message: str, error_code: int) -> None:
        MlflowException.__init__(self, message, error_code=error_code)


@contextmanager
def as_mlflow() -> Iterator[None]:
    """Raise errors made on purpose as MLflow's, with the code that fits.

    Raises:
        DeploymentError: in place of a :class:`SeatrialError`.
    """
    try:
        yield
    except SeatrialError as error:
        code = next(code for kind, code in CODES if isinstance(error, kind))
        raise DeploymentError(_said(error), error_code=code) from error


def _said(error: SeatrialError) -> str:
    """Fields given by `-C` have no lines in a file."""
    if isinstance(error, ConfigError) and error.problems[0].file == "-C":
        return "\n".join(f"-C {each.field}: {each.value}: {each.fix}" for each in error.problems)
    return str(error)
