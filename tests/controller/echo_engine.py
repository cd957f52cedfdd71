"""A stand-in for the engine: no model, but the same contract with the controller. Runs on real Ray Serve."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from ray import serve
from starlette.requests import Request
from starlette.responses import JSONResponse

from seatrial.experiments.assignment import TrialTable, assign
from seatrial.store import Store


@serve.deployment(name="Engine")
class Echo:
    def __init__(self, args: dict[str, Any]) -> None:
        if "engine" in Path(os.environ["ECHO_BROKEN"]).read_text().split():
            raise RuntimeError("the base model is not there")
        self.service = args["service"]["name"]
        self.store = Store(os.environ["SEATRIAL_STORE_URL"])
        self.told: dict[str, Any] = {}

    def reconfigure(self, told: dict[str, Any]) -> None:
        broken = Path(os.environ["ECHO_BROKEN"]).read_text().split()
        self.told = told
        loaded = {
            each["version"]: "error: echo cannot load it" if each["version"] in broken else "ready"
            for each in told["preload"]
        }
        context = serve.get_replica_context()
        row = {
            "replica_id": context.replica_id.unique_id,
            "app": context.app_name,
            "service": self.service,
            "revision": told["revision"],
            "loaded": loaded,
            "at": time.time() + 3600,  # it has no heartbeat of its own
        }
        self.store.put_replica(row)

    async def __call__(self, request: Request) -> JSONResponse:
        traffic = self.told.get("traffic")
        if not traffic:
            return JSONResponse({}, status_code=503)
        unit = request.query_params["user"]
        arm = assign(unit, TrialTable.from_json(traffic["trial"])) if traffic["trial"] else None
        version = arm.version if arm else traffic["aliases"]["champion"]
        return JSONResponse({"version": version, "arm": arm.name if arm else None})


def build(args: dict[str, Any]) -> serve.Application:
    # A tenth of what is asked for, so that the machine has room.
    return Echo.options(ray_actor_options={"num_cpus": args["service"]["engine"]["cpus"] / 10}).bind(args)
