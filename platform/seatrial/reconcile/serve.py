"""Ray Serve's REST API on the dashboard's port."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

import httpx

from seatrial.config.addresses import Addresses
from seatrial.errors import RetryableError, SeatrialError
from seatrial.monitoring.bearer import ray_token
from seatrial.monitoring.logs import cause
from seatrial.reconcile.world import AppStatus

TIMEOUT_S = 30.0
_GONE = ("STOPPING", "STOPPED")
_ILL = ("UNHEALTHY", "DEPLOY_FAILED")
# Serve says so after 30 s, which every engine takes.
_USUAL = "to initialize"


class ServeApi:
    """Read and write the applications of a Ray cluster.

    ``serve_url`` is where the services answer: its host and port are Serve's HTTP options when it starts.
    """

    def __init__(self, dashboard: str, serve_url: str, token: Callable[[], str | None]) -> None:
        self._url = f"{dashboard}/api/serve/applications/"
        self._http_options = _http_options(serve_url)
        self._token = token
        self._client = httpx.Client(timeout=TIMEOUT_S, trust_env=False)

    @classmethod
    def of(cls, addresses: Addresses) -> ServeApi:
        """The API at the cluster that ``addresses`` names."""
        return cls(addresses.ray_dashboard, addresses.serve_url, lambda: ray_token(addresses.ray_token_path))

    def apps(self) -> dict[str, AppStatus]:
        """Every application; none when Serve does not run.

        Raises:
            RetryableError: Ray does not answer.
        """
        return {name: _app(name, details) for name, details in self._details()["applications"].items()}

    def put(self, apps: Sequence[Mapping[str, Any]], *, owned: Sequence[str]) -> None:
        """Deploy ``apps``; those present that are not ``owned`` stay as they are.

        Serve deletes what such a request leaves out, so the others are read right before and listed with it.

        Raises:
            RetryableError: Ray does not answer.
            SeatrialError: Serve refuses the configuration.
        """
        details = self._details()
        others = [
            app["deployed_app_config"]
            for name, app in details["applications"].items()
            if name not in owned and app["deployed_app_config"] and app["status"] != "DELETING"
        ]
        body = {
            "http_options": details.get("http_options") or self._http_options,
            "applications": [*others, *apps],
        }
        if details.get("proxy_location"):
            body["proxy_location"] = details["proxy_location"]
        answer = self._request("PUT", body)
        if answer.status_code >= 400:
            raise SeatrialError(f"Ray Serve refuses the applications: {_line(answer.text)}")

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def _details(self) -> dict[str, Any]:
        answer = self._request("GET")
        if answer.status_code != 200:
            raise RetryableError(f"Ray Serve: {self._url} answers {answer.status_code}: {_line(answer.text)}")
        details: dict[str, Any] = answer.json()
        return details

    def _request(self, method: str, body: Any = None) -> httpx.Response:
        token = self._token()
        headers = {"X-Ray-Authorization": f"Bearer {token}"} if token else {}
        try:
            answer = self._client.request(method, self._url, json=body, headers=headers)
        except httpx.HTTPError as error:
            raise RetryableError(f"Ray: {self._url} does not answer ({error})") from error
        if answer.status_code in (401, 403):
            raise RetryableError(f"Ray: {self._url} answers {answer.status_code}: check RAY_AUTH_TOKEN_PATH")
        if answer.status_code >= 500:
            raise RetryableError(f"Ray: {self._url} answers {answer.status_code}: {_line(answer.text)}")
        return answer


def _app(name: str, details: Mapping[str, Any]) -> AppStatus:
    replicas = tuple(
        replica["replica_id"].split("#")[-1]
        for deployment in details["deployments"].values()
        for replica in deployment["replicas"]
        if replica["state"] not in _GONE
    )
    return AppStatus(
        name,
        details["status"],
        _message(details),
        details["deployed_app_config"],
        replicas,
        details["last_deployed_time_s"],
    )


def _message(details: Mapping[str, Any]) -> str:
    """Why the application is not well yet. Its own message only names the deployments that are not."""
    said = [each for each in details["deployments"].values() if each["message"]]
    ill = [each for each in said if each["status"] in _ILL]
    # It waits for room, or tries once more.
    late = [each for each in said if each["status"] != "HEALTHY" and _USUAL not in each["message"]]
    text = str((ill or late or [details])[0]["message"])
    if "Traceback" in text or ill:
        text = cause(text.splitlines()) or text
    return _line(text)


def _http_options(serve_url: str) -> dict[str, Any]:
    parts = urlsplit(serve_url)
    return {"host": parts.hostname or "127.0.0.1", "port": parts.port or 8000}


def _line(text: str) -> str:
    return " ".join(text.split())[:500]
