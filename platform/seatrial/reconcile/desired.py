"""Read what people wish for: services from the store, aliases from MLflow."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from seatrial.errors import RetryableError
from seatrial.reconcile.world import ADAPTER_KINDS, FULL_KINDS, DesiredService, VersionInfo
from seatrial.registry.client import connect

if TYPE_CHECKING:
    from mlflow import MlflowClient

MISSING = "RESOURCE_DOES_NOT_EXIST"


class Registry:
    """The registry's side of a pass: one health check, then one or a few requests for each service."""

    def __init__(self, uri: str) -> None:
        self._client: MlflowClient = connect(uri)

    def service(
        self, name: str, row: Mapping[str, Any], route_prefix: str, also: Iterable[str]
    ) -> DesiredService:
        """What is wished of a service; ``also`` are versions wanted besides those that aliases name.

        Raises:
            RetryableError: MLflow did not answer everything.
        """
        aliases = self._aliases(name)
        versions = {version: self._version(name, version) for version in {*aliases.values(), *also}}
        config = row["config"]
        base = config["engine"]["base"]
        return DesiredService(name, config, route_prefix, base, aliases, versions, row["updated_at"])

    def _aliases(self, name: str) -> dict[str, str]:
        """Alias → version; a model that nobody registered yet has none."""
        model = self._ask(lambda: self._client.get_registered_model(name))
        return {} if model is None else {alias: str(each) for alias, each in model.aliases.items()}

    def _version(self, name: str, version: str) -> VersionInfo:
        found = self._ask(lambda: self._client.get_model_version(name, version))
        if found is None:
            return VersionInfo(version, problem="not in the registry", exists=False)
        kind, digest = found.tags.get("seatrial.kind", ""), found.tags.get("seatrial.digest", "")
        return VersionInfo(
            version, kind, digest, _problem(kind, digest), found.tags.get("seatrial.load_error")
        )

    def _ask(self, question: Any) -> Any:
        """The answer, None where MLflow says that there is no such thing.

        Raises:
            RetryableError: it says anything else.
        """
        from mlflow.exceptions import MlflowException

        try:
            return question()
        except MlflowException as error:
            if error.error_code == MISSING:
                return None
            raise RetryableError(f"MLflow: {str(error.message).splitlines()[0]}") from error


def _problem(kind: str, digest: str) -> str | None:
    if not kind or not digest:
        return "no `seatrial.kind` and `seatrial.digest` tags: register the version with a Seatrial job"
    if kind not in ADAPTER_KINDS + FULL_KINDS:
        return f"kind {kind!r} cannot be served by the engine"
    return None
