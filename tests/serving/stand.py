"""A running service, and how a test changes it and looks at it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai
from sqlalchemy import text

from seatrial.store import Store
from tests.serving import stage

SERVICE = "svc"
FULL = f"{SERVICE}--v4"
ENGINE = {
    "dtype": "float32",
    "enforce_eager": True,
    "device": "cpu",
    "max_num_seqs": 16,
    "kv_cache_gib": 0.25,
    "max_model_len": 256,
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

    def configure(self, made: list[tuple[str, str]], *, wait: bool = True, **changes: Any) -> str:
        """Send a new user_config, and wait until the replica has it in force."""
        self.revision += 1
        revision = f"r{self.revision}"
        full = changes.pop("full", False)
        config = stage.user_config(SERVICE, made, revision=revision, **changes)
        if full:
            config["preload"][-1] |= {"kind": "full", "app": FULL}
        self.put(config)
        if wait:
            stage.wait_until(lambda: self.replica()["revision"] == revision, 90, f"revision {revision}")
        return revision

    def put(self, config: dict[str, Any]) -> None:
        apps = [stage.application(SERVICE, ENGINE | {"base": str(self.base)}, config)]
        if self.is_full_deployed:
            args = apps[0]["args"] | {"version": self.full[0], "digest": self.full[1]}
            path = "seatrial_serving.engine:build_full"
            apps.append({"name": FULL, "route_prefix": None, "import_path": path, "args": args})
        self.cluster.put(apps)

    def replica(self) -> dict[str, Any]:
        """The newest status row, with `loaded` read."""
        with self.store.engine.connect() as connection:
            row = (
                connection.execute(text("select * from replicas order by at desc limit 1")).mappings().first()
            )
        return {**row, "loaded": json.loads(row["loaded"])} if row else {"revision": "", "loaded": {}}

    def exposures(self, expected: int, **where: Any) -> list[dict[str, Any]]:
        """The exposures, as soon as ``expected`` of them are there."""
        filters = " and ".join(f"{name} = :{name}" for name in where) or "1 = 1"

        def read() -> list[dict[str, Any]]:
            with self.store.engine.connect() as connection:
                found = connection.execute(text(f"select * from exposures where {filters}"), where)  # noqa: S608
                return [dict(row) for row in found.mappings()]

        stage.wait_until(lambda: len(read()) >= expected, 20, f"{expected} exposures")
        return read()

    def client(self, **options: Any) -> openai.OpenAI:
        """An ordinary client."""
        options = {"api_key": stage.KEY, "max_retries": 0, "timeout": 60.0, **options}
        return openai.OpenAI(base_url=f"{self.cluster.serve_url}/v1", **options)
