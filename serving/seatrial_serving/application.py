"""What Ray Serve builds and places. An engine is imported where a replica starts, and by nobody else.

`build` makes a service's application, `build_full` one for a version that is a whole model.
"""

from __future__ import annotations

import sys
from collections.abc import AsyncGenerator
from contextlib import aclosing, redirect_stderr, redirect_stdout
from typing import Any

import ray
from pydantic import ValidationError
from ray import serve
from ray.serve._private.constants import (
    RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S,
    SERVE_CONTROLLER_NAME,
    SERVE_NAMESPACE,
)

from seatrial.config.addresses import Addresses
from seatrial.errors import UserError
from seatrial_serving.auth import require_keys_off_loopback
from seatrial_serving.base import full_model, resolve
from seatrial_serving.errors import App
from seatrial_serving.forward import DEPLOYMENT, Part
from seatrial_serving.spec import (
    MOST_REQUEST_S,
    Spec,
    bundles,
    cache_folder,
    choose_device,
    environment,
    replica_cpus,
)

# From its last request on a replica waits for proxies to notice, then for the answers under way.
SHUTDOWN_S = RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S + MOST_REQUEST_S + 60
UNLIMITED = 1_000_000  # Traffic has its own limit, with an answer in OpenAI's shape


def build(args: dict[str, Any]) -> serve.Application:
    """The application of a service.

    Raises:
        UserError: wrong args, a base model that is missing or unsafe, keys off where strangers can call.
    """
    spec = _spec(args)
    if spec.service.http is not None:
        controller = ray.get_actor(SERVE_CONTROLLER_NAME, namespace=SERVE_NAMESPACE)
        require_keys_off_loopback(spec.service.http, ray.get(controller.get_http_config.remote()).host)
    resolve(spec.base, spec.service.engine.revision, cache_folder(Addresses.resolve().home))
    return _bind(serve.ingress()(Replica), spec)


def build_full(args: dict[str, Any]) -> serve.Application:
    """The application of one version that is a whole model; it has no route and no HTTP of its own.

    Raises:
        UserError: wrong args, a version that is missing, changed, or no full model.
    """
    spec = _spec(args)
    full_model(spec, cache_folder(Addresses.resolve().home))
    return _bind(FullReplica, spec)


class _Process:
    """What Serve asks of every replica."""

    _engine: Any

    async def check_health(self) -> None:
        """As the engine says; RuntimeError when it is dead."""
        await self._engine.check_health()

    async def __del__(self) -> None:
        if hasattr(self, "_engine"):
            await self._engine.close()


class Replica(_Process):
    """One process of a service's engine, with its traffic table."""

    async def __init__(self, spec: dict[str, Any], device: str) -> None:
        self._engine = _engine().ServiceEngine(Spec.model_validate(spec), device)
        await self._engine.start()

    async def __serve_build_asgi_app__(self) -> App:
        return self._engine.app()

    async def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Take the controller's newest preload list, traffic table and rules."""
        await self._engine.reconfigure(user_config)


class FullReplica(_Process):
    """One process of a full-model version. Requests come from the service's replicas by handle."""

    async def __init__(self, spec: dict[str, Any], device: str) -> None:
        self._engine = _engine().FullEngine(Spec.model_validate(spec), device)
        await self._engine.start()

    async def forward(self, path: str, body: bytes, request_id: str) -> AsyncGenerator[Part, None]:
        """Answer one request: that it was taken, status and headers, then the body piece by piece."""
        async with aclosing(self._engine.forward(path, body, request_id)) as parts:
            async for part in parts:
                yield part


def _engine() -> Any:
    """The engine's module. Its loggers keep the streams of its import, which are the process's own.

    Serve has put its own there by now, which keep the last lines of a quiet replica to themselves.
    """
    out, err = (getattr(stream, "_original_object", stream) for stream in (sys.stdout, sys.stderr))
    with redirect_stdout(out), redirect_stderr(err):
        from seatrial_serving import engine
    return engine


def _spec(args: dict[str, Any]) -> Spec:
    try:
        return Spec.model_validate(args)
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(f"args.{'.'.join(map(str, first['loc']))}: {first['msg']}") from error


def _bind(replica: type, spec: Spec) -> serve.Application:
    engine = spec.service.engine
    device = choose_device(engine, ray.cluster_resources().get("GPU", 0))
    environ = {"env_vars": environment(engine, device=device)}
    deployment = serve.deployment(
        replica,
        name=DEPLOYMENT,
        num_replicas=engine.replicas,
        max_ongoing_requests=UNLIMITED,
        health_check_period_s=5,
        health_check_timeout_s=30,
        graceful_shutdown_timeout_s=SHUTDOWN_S,
        logging_config={"enable_access_log": False},
        placement_group_bundles=bundles(engine, device=device),
        placement_group_strategy="STRICT_PACK",
        ray_actor_options={
            "num_cpus": replica_cpus(engine, device=device),
            "runtime_env": {**ray.get_runtime_context().runtime_env, **environ},
        },
    )
    return deployment.bind(spec.model_dump(mode="json"), device)
