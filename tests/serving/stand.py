"""A running service, and how a test changes it and looks at it."""

from __future__ import annotations

import json
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import openai
from sqlalchemy import text

from seatrial.store import Store
from tests.serving import stage

SERVICE, BASE = "svc", "svc-base"
REPLICAS = 2
FRESH_S = 10.0
FULL = f"{SERVICE}--v4"
ENGINE = {
    "dtype": "float32",
    "enforce_eager": True,
    "device": "cpu",
    "max_num_seqs": 16,
    "kv_cache_gib": 0.25,
    "max_model_len": 256,
    "base": f"models:/{BASE}/1",
}


@dataclass
class Stand:
    """The running service, and what it was made of."""

    cluster: stage.Cluster
    store: Store
    base: Path
    adapters: list[tuple[str, str]]
    full: tuple[str, str]
    mlflow_url: str
    revision: int = 1
    is_full_deployed: bool = False
    opened: ExitStack = field(default_factory=ExitStack)

    def configure(self, made: list[tuple[str, str]], *, wait: bool = True, **changes: Any) -> str:
        """Send a new user_config, and wait until every replica has it in force."""
        self.revision += 1
        revision = f"r{self.revision}"
        full = changes.pop("full", False)
        config = stage.user_config(SERVICE, made, revision=revision, **changes)
        if full:
            config["preload"][-1] |= {"kind": "full", "app": FULL}
        self.put(config)
        if wait:
            self.wait_revision(revision)
        return revision

    def wait_revision(self, revision: str) -> None:
        """Return when every replica has the revision in force."""
        stage.wait_until(lambda: self.revisions() == [revision] * REPLICAS, 90, f"revision {revision}")

    def put(self, config: dict[str, Any]) -> None:
        apps = [stage.application(SERVICE, ENGINE | {"replicas": REPLICAS}, config)]
        if self.is_full_deployed:
            args: dict[str, Any] = {"service": {"name": SERVICE, "engine": ENGINE}}
            args |= {"version": self.full[0], "digest": self.full[1]}
            path = "seatrial_serving.application:build_full"
            apps.append({"name": FULL, "route_prefix": None, "import_path": path, "args": args})
        self.cluster.put(apps)

    def replicas(self) -> list[dict[str, Any]]:
        """The status rows of replicas that live, with `loaded` read."""
        since = {"since": time.time() - FRESH_S}
        with self.store.engine.connect() as connection:
            rows = connection.execute(text("select * from replicas where at > :since"), since).mappings()
            return [{**row, "loaded": json.loads(row["loaded"])} for row in rows]

    def revisions(self) -> list[str]:
        """What is in force, replica by replica."""
        return [row["revision"] for row in self.replicas()]

    def pids(self) -> dict[str, int]:
        """The processes of the running replicas, by replica id."""
        found = self.cluster.application(SERVICE)["deployments"]["Engine"]["replicas"]
        return {
            each["replica_id"].split("#")[-1]: each["pid"] for each in found if each["state"] == "RUNNING"
        }

    def exposures(self, expected: int, **where: Any) -> list[dict[str, Any]]:
        """The exposures, as soon as ``expected`` of them are there."""
        filters = " and ".join(f"{name} = :{name}" for name in where) or "1 = 1"

        def read() -> list[dict[str, Any]]:
            with self.store.engine.connect() as connection:
                found = connection.execute(text(f"select * from exposures where {filters}"), where)  # noqa: S608
                return [dict(row) for row in found.mappings()]

        # A replica that starts beside it takes the machine for a while.
        stage.wait_until(lambda: len(read()) >= expected, 90, f"{expected} exposures {where}")
        return read()

    def client(self, **options: Any) -> openai.OpenAI:
        """An ordinary client, closed with the stand."""
        options = {"api_key": stage.KEY, "max_retries": 0, "timeout": 60.0, **options}
        return self.opened.enter_context(openai.OpenAI(base_url=f"{self.cluster.serve_url}/v1", **options))
