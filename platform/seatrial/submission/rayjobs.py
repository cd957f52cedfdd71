"""Ray's Jobs API and what the cluster has free, over HTTP: the controller loads no Ray for it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx

from seatrial.config.addresses import Addresses
from seatrial.errors import RetryableError, SeatrialError
from seatrial.monitoring.bearer import ray_token
from seatrial.monitoring.logs import plain
from seatrial.submission.events import Event, Lines, parse
from seatrial.submission.order import Cluster, Node, Room

TIMEOUT_S = 30.0
KEPT_LINES = 200
LINE_CHARS = 4000
ENDED = ("SUCCEEDED", "FAILED", "STOPPED")
TAKEN = "already exists"
# The dashboard hands jobs to its agent, and answers 500 whatever that answers. The agent's 400 is about the
# job, anything else (no agent yet, the GCS away) is not.
REFUSED = "Request failed with status code 400"


@dataclass(frozen=True)
class RayJob:
    """An attempt as Ray sees it; times in seconds since the epoch."""

    status: str
    started_at: float | None = None
    ended_at: float | None = None
    exit_code: int | None = None
    message: str = ""
    error_type: str = ""
    job_id: str = ""
    """Ray's id of its driver; none before that has joined the cluster."""

    @property
    def has_ended(self) -> bool:
        """Whether nothing will change any more."""
        return self.status in ENDED


@dataclass(frozen=True)
class Group:
    """A placement group that is in place."""

    id: str
    driver: str
    """Ray's id of the driver that it was made for."""
    room: Room
    outlives: bool = False
    """Whether it was meant to outlive its driver."""


@dataclass(frozen=True)
class Log:
    """The end of an attempt's log, and what its events said."""

    lines: Sequence[str] = ()
    result: Mapping[str, Any] = field(default_factory=dict)


class RayJobs:
    """The jobs of one cluster.

    Raises (every method):
        RetryableError: Ray does not answer.
    """

    def __init__(self, dashboard: str, token: Callable[[], str | None]) -> None:
        self._url = dashboard
        self._token = token
        self._client = httpx.Client(timeout=TIMEOUT_S, trust_env=False)

    @classmethod
    def of(cls, addresses: Addresses) -> RayJobs:
        """The jobs of the cluster that ``addresses`` names."""
        return cls(addresses.ray_dashboard, lambda: ray_token(addresses.ray_token_path))

    def jobs(self) -> dict[str, RayJob]:
        """Submission id → job, of all that the cluster knows; a driver that nobody submitted has Ray's id."""
        found = self._read("/api/jobs/")
        return {str(each.get("submission_id") or each["job_id"]): _job(each) for each in found}

    def cluster(self) -> Cluster:
        """The nodes that are up, and what of them is free."""
        nodes = self._read("/api/v0/nodes", params={"detail": 1, "limit": 10_000})
        status = self._read("/api/cluster_status")
        usage = _usage(status)
        rows = nodes["data"]["result"]["result"]
        return Cluster(tuple(_node(row, usage) for row in rows if row["state"] == "ALIVE"))

    def groups(self) -> list[Group]:
        """The placement groups in place: each holds room for workers of a driver."""
        in_place = {"filter_keys": "state", "filter_predicates": "=", "filter_values": "CREATED"}
        found = self._read("/api/v0/placement_groups", params={"detail": 1, "limit": 10_000, **in_place})
        return [_group(row) for row in found["data"]["result"]["result"]]

    def submit(
        self,
        submission_id: str,
        entrypoint: str,
        runtime_env: Mapping[str, Any],
        metadata: Mapping[str, str],
        reserved: Room,
    ) -> None:
        """Start an attempt; ``reserved`` is for its command alone, besides what its workers will take. One
        that Ray has under this id already stays as it is.

        Raises:
            SeatrialError: Ray refuses it.
        """
        body = {
            "entrypoint": entrypoint,
            "submission_id": submission_id,
            "runtime_env": dict(runtime_env),
            "metadata": dict(metadata),
            "entrypoint_num_cpus": reserved.cpus,
            "entrypoint_num_gpus": reserved.gpus,
        }
        answer = self._send("POST", "/api/jobs/", json=body)
        if answer.status_code < 400 or TAKEN in answer.text:
            return
        if answer.status_code < 500 or REFUSED in answer.text:
            raise SeatrialError(f"Ray refused the job: {_last_line(answer.text)}")
        raise RetryableError(f"ray: takes no job now: {_last_line(answer.text)}")

    def stop(self, submission_id: str) -> None:
        """Ask Ray to end it; SIGTERM first. One that is gone is left alone."""
        self._send("POST", f"/api/jobs/{submission_id}/stop")

    def log(self, submission_id: str) -> Log:
        """The end of its log; nothing where Ray has none."""
        answer = self._send("GET", f"/api/jobs/{submission_id}/logs")
        if answer.status_code != 200:
            return Log()
        lines: deque[str] = deque(maxlen=KEPT_LINES)
        result: dict[str, Any] = {}
        for line in Lines.of(str(answer.json().get("logs") or "")):
            said = parse(line)
            if isinstance(said, Event):
                result |= _result(said)
            else:
                lines.append(plain(said)[:LINE_CHARS])
        return Log(tuple(lines), result)

    def put_package(self, name: str, body: bytes) -> None:
        """Give the cluster a folder as a zip file, unless it has it."""
        where = f"/api/packages/gcs/{name}"
        if self._send("GET", where).status_code != 200:
            self._ask("PUT", where, content=body)

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def _read(self, path: str, **more: Any) -> Any:
        answer = self._ask("GET", path, **more)
        try:
            return answer.json()
        except ValueError as error:
            raise RetryableError(
                f"ray: {self._url}{path} answers no JSON ({answer.status_code}): a proxy, or another server?"
            ) from error

    def _ask(self, method: str, path: str, **more: Any) -> httpx.Response:
        answer = self._send(method, path, **more)
        if answer.status_code >= 400:
            raise RetryableError(f"ray: {path} answers {answer.status_code}: {_last_line(answer.text)}")
        return answer

    def _send(self, method: str, path: str, **more: Any) -> httpx.Response:
        token = self._token()
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        try:
            answer = self._client.request(method, f"{self._url}{path}", headers=headers, **more)
        except httpx.HTTPError as error:
            why = str(error) or type(error).__name__
            raise RetryableError(f"ray: {self._url} does not answer ({why})") from error
        if answer.status_code in (401, 403):
            raise RetryableError(f"ray: {self._url} refuses the controller's token: see RAY_AUTH_TOKEN_PATH")
        if answer.status_code in (502, 503, 504):
            raise RetryableError(f"ray: {self._url} answers {answer.status_code}")
        return answer


def _job(row: Mapping[str, Any]) -> RayJob:
    return RayJob(
        status=str(row["status"]),
        started_at=_seconds(row.get("start_time")),
        ended_at=_seconds(row.get("end_time")),
        exit_code=row.get("driver_exit_code"),
        message=str(row.get("message") or ""),
        error_type=str(row.get("error_type") or ""),
        job_id=str(row.get("job_id") or ""),
    )


def _seconds(milliseconds: int | None) -> float | None:
    return None if not milliseconds else milliseconds / 1000


def _usage(status: Mapping[str, Any]) -> dict[str, Mapping[str, Sequence[float]]]:
    """Node id in lower case → resource → (used, total); empty where no autoscaler reports it."""
    report = ((status.get("data") or {}).get("clusterStatus") or {}).get("loadMetricsReport") or {}
    # The dashboard writes every key of its answer in camel case, ids too.
    return {str(name).lower(): each for name, each in (report.get("usageByNode") or {}).items()}


def _node(row: Mapping[str, Any], usage: Mapping[str, Mapping[str, Sequence[float]]]) -> Node:
    total = row["resources_total"]
    used = usage.get(str(row["node_id"]).lower(), {})
    cpus, gpus = (float(total.get(name, 0.0)) for name in ("CPU", "GPU"))
    taken_cpus, taken_gpus = (float(used.get(name, (0.0, 0.0))[0]) for name in ("CPU", "GPU"))
    return Node(cpus, gpus, cpus - taken_cpus, gpus - taken_gpus)


def _group(row: Mapping[str, Any]) -> Group:
    room = sum(map(_bundle, row.get("bundles") or ()), Room())
    return Group(
        str(row["placement_group_id"]), str(row["creator_job_id"]), room, bool(row.get("is_detached"))
    )


def _bundle(row: Mapping[str, Any]) -> Room:
    """One worker's part of a placement group."""
    resources = row.get("unit_resources") or {}
    return Room(float(resources.get("CPU", 0.0)), float(resources.get("GPU", 0.0)))


def _result(event: Event) -> dict[str, Any]:
    if event.name == "run":
        return {"run": event.text("url"), "run_id": event.text("run_id")}
    if event.name == "registered":
        return {"version": f"models:/{event.text('name')}/{event.text('version')}"}
    return {}


def _last_line(text: str) -> str:
    return plain((text.strip().splitlines() or ["no reason given"])[-1][:300])
