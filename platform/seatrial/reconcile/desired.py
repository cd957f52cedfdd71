"""Read what people wish for: services from the store, aliases from MLflow."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from seatrial.errors import RetryableError
from seatrial.experiments.trial import CHAMPION, Trial
from seatrial.reconcile.world import ADAPTER_KINDS, FULL_KINDS, DesiredService, VersionInfo
from seatrial.registry.client import NotRegisteredError, asking, connect

if TYPE_CHECKING:
    from mlflow import MlflowClient

SILENT_S = 10.0  # longer than a server that works takes to answer, shorter than one attempt's timeout


class Registry:
    """The registry's side of a pass: one health check, then one or a few requests for each service.

    A server that leaves a request without an answer for ``silent_s`` seconds is asked nothing more: each
    service's requests would take as long, and the pass of all of them more than a controller's lease. So is
    one that is not well: ``away`` then says how.
    """

    def __init__(self, uri: str, silent_s: float = SILENT_S) -> None:
        self.away: RetryableError | None = None
        self._silent_s = silent_s
        self._silence: str | None = None
        try:
            self._client: MlflowClient = connect(uri)
        except RetryableError as error:
            self.away = error

    def service(self, name: str, row: Mapping[str, Any], also: Collection[str]) -> DesiredService:
        """What is wished of a service; ``also`` are versions wanted besides those that aliases name.

        Raises:
            RetryableError: MLflow did not answer everything, or knows nothing of what is being served.
        """
        deleted_at: float | None = row["deleted_at"]
        # A service that is to go needs nothing of the registry any more.
        served = row["state"].get("served") if deleted_at is None else None
        aliases = self._aliases(name)
        if aliases is None and served is not None:
            raise RetryableError(_unknown(name, f"no registered model {name}", served))
        aliases = aliases or {}
        versions = {version: self._version(name, version) for version in {*aliases.values(), *also}}
        is_known = CHAMPION in aliases or any(versions[version].exists for version in also)
        if served is not None and not is_known:
            raise RetryableError(_unknown(name, f"no champion of {name} and none of its versions", served))
        return _of(name, row, aliases, versions)

    def _aliases(self, name: str) -> dict[str, str] | None:
        """Alias → version; None where there is no such model."""
        model = self._ask(lambda: self._client.get_registered_model(name))
        return None if model is None else {alias: str(each) for alias, each in model.aliases.items()}

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
            RetryableError: it says anything else, or has left a request before without an answer.
        """
        if self.away is not None:
            raise self.away
        if self._silence is not None:
            raise RetryableError(self._silence)
        began = time.monotonic()
        try:
            with asking(NotRegisteredError):
                return question()
        except NotRegisteredError:
            return None
        except RetryableError as error:
            if time.monotonic() - began >= self._silent_s:
                self._silence = str(error)
            raise


def as_begun(name: str, row: Mapping[str, Any], trial: Trial) -> DesiredService:
    """What is wished of a service whose aliases cannot be read, as far as its running trial tells."""
    return replace(_of(name, row, trial.arms, {}), is_read=False)


def _of(
    name: str, row: Mapping[str, Any], aliases: Mapping[str, str], versions: Mapping[str, VersionInfo]
) -> DesiredService:
    config, prefix = row["config"], row["route_prefix"]
    base = config["engine"]["base"]
    return DesiredService(name, config, prefix, base, aliases, versions, row["updated_at"], row["deleted_at"])


def _unknown(name: str, lacks: str, served: str) -> str:
    """An empty registry is more likely a server on the wrong database than a wish to stop serving."""
    return (
        f"MLflow has {lacks}: version {served} goes on, and no alias is followed until it is back: "
        f"check the server's database, or register {name} again"
    )


def _problem(kind: str, digest: str) -> str | None:
    if not kind or not digest:
        return "no `seatrial.kind` and `seatrial.digest` tags: register the version with a Seatrial job"
    if kind not in ADAPTER_KINDS + FULL_KINDS:
        return f"kind {kind!r} cannot be served by the engine"
    return None
