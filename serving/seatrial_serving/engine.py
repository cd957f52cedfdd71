"""The engine inside a replica. The only module that touches Ray Serve LLM's hooks, which are not stable.

HAProxy -> replica process: Traffic (ours) -> vLLM's own OpenAI app -> engine
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from functools import partial
from pathlib import Path
from typing import Any

import ray
from ray import serve
from ray.llm._internal.common.callbacks.base import CallbackBase
from ray.llm._internal.serve.constants import ENGINE_START_TIMEOUT_S
from ray.llm._internal.serve.core.configs.llm_config import LLMConfig
from ray.llm._internal.serve.engines.vllm.vllm_engine import VLLMEngine
from ray.serve._private.constants import SERVE_CONTROLLER_NAME, SERVE_NAMESPACE

from seatrial.config.addresses import Addresses
from seatrial.config.service import HttpSection
from seatrial.errors import RetryableError, UserError
from seatrial.registry.bases import CHAT_TEMPLATE, has_chat_template
from seatrial_serving.adapters import Loader
from seatrial_serving.auth import require_keys_off_loopback
from seatrial_serving.base import full_model, resolve
from seatrial_serving.errors import App
from seatrial_serving.forward import ACCEPTED, Forwarder, Part, drive
from seatrial_serving.live import Live, Rules
from seatrial_serving.loopback import bind_inner_port
from seatrial_serving.metrics import RayMeter, count_outcomes
from seatrial_serving.recorder import Recorder, store_of
from seatrial_serving.request import encode
from seatrial_serving.shadow import Shadows
from seatrial_serving.spec import (
    QUEUE_FACTOR,
    Spec,
    cache_folder,
    engine_kwargs,
    environment,
    placement,
    spool_folder,
)
from seatrial_serving.sticky import Sticky
from seatrial_serving.table import Table
from seatrial_serving.traffic import COMPLETIONS, Traffic, UnreachableError

NOBODY = HttpSection.model_construct(keys=(), allow_anonymous=False)
WARM_TIMEOUT_S = 120.0


def _llm_config(spec: Spec, model_id: str, path: Path, *, device: str, lora: bool) -> LLMConfig:
    engine = spec.service.engine
    kwargs = engine_kwargs(engine, device=device, lora=lora)
    if device == "cpu" and lora:
        kwargs["worker_cls"] = "seatrial_serving.cpu_lora.Worker"
    if not has_chat_template(path):
        kwargs["chat_template"] = CHAT_TEMPLATE  # the one that training spoke to it with
    return LLMConfig(
        model_loading_config={"model_id": model_id, "model_source": str(path)},
        engine_kwargs=kwargs,
        accelerator_config={"kind": device},
        callback_config={"callback_class": _ModelIsHere},
        placement_group_config=placement(engine, device=device),
        runtime_env={"env_vars": environment(engine, device=device)},
    )


class _ModelIsHere(CallbackBase):
    """Ray's own download is left out: the model is a folder by then, and all it would do is import vLLM."""

    async def on_before_node_init(self) -> None:
        self.ctx.run_init_node = False


class _OneProcessEngine(VLLMEngine):
    """vLLM whose scheduler and model share a process.

    vLLM gives the CPU's worker a process of its own so that it can bind its threads, and the two then wait
    for each other by spinning: on few cores that costs more than the model. Threads are not bound here.
    """

    def _start_async_llm_engine(self, args: Any, config: Any, placement_group: Any) -> Any:
        if config.parallel_config.world_size == 1:
            config.parallel_config.distributed_executor_backend = "uni"
        return super()._start_async_llm_engine(args, config, placement_group)


class _Engine:
    """vLLM in this process, and its OpenAI app."""

    engine: VLLMEngine | None = None

    def __init__(self, spec: Spec, device: str) -> None:
        self._spec, self._device = spec, device

    async def _start(self, model_id: str, path: Path, *, lora: bool) -> None:
        bind_inner_port()
        config = _llm_config(self._spec, model_id, path, device=self._device, lora=lora)
        self.engine = _OneProcessEngine(config) if self._device == "cpu" else VLLMEngine(config)
        async with asyncio.timeout(ENGINE_START_TIMEOUT_S):
            await self.engine.start()
        self._openai: App = await self.engine.build_asgi_app()

    async def check_health(self) -> None:
        """As the engine says.

        Serve's controller, one for all applications, unpickles what is raised: an error of vLLM's would have
        it import vLLM and torch, and do nothing else meanwhile (25 s on a busy machine).

        Raises:
            RuntimeError: the engine is dead; Serve starts another replica.
        """
        if self.engine is None:
            return
        try:
            await self.engine.check_health()
        except Exception as error:
            raise RuntimeError(f"the engine is not well: {type(error).__name__}: {error}") from None

    async def close(self) -> None:
        """Let go of the engine's sockets."""
        if self.engine is not None:
            await self.engine.shutdown()

    @property
    def _client(self) -> Any:
        assert self.engine is not None  # noqa: S101
        return self.engine._engine_client

    @property
    def _adapters(self) -> dict[str, Any]:
        """vLLM's requests for adapters, by the name under which clients ask."""
        assert self.engine is not None  # noqa: S101
        return self.engine._oai_models.lora_requests

    async def _warm(self, model: str) -> None:
        body = encode({"model": model, "prompt": [1], "max_tokens": 1})
        async for part in drive(self._openai, COMPLETIONS, body, "warm-up"):
            if isinstance(part, tuple) and part[0] != 200:
                raise UserError(f"{model}: the warm-up request was answered with {part[0]}")


class ServiceEngine(_Engine):
    """A replica of a service: the base model, its adapters, and the traffic table."""

    async def start(self) -> None:
        """Start everything that answers."""
        service, engine = self._spec.service, self._spec.service.engine
        addresses = Addresses.resolve()
        self._controller = ray.get_actor(SERVE_CONTROLLER_NAME, namespace=SERVE_NAMESPACE)
        self._host = (await self._controller.get_http_config.remote()).host
        if service.http is not None:
            require_keys_off_loopback(service.http, self._host)
        cache = cache_folder(addresses.home)
        base = await asyncio.to_thread(resolve, self._spec.base, engine.revision, cache)
        self.base_digest = base.digest
        self.max_lora_rank = engine.max_lora_rank
        await self._start(service.name, base.path, lora=True)
        self._forwarder = Forwarder()
        self._live = Live(Table(service.name), self._rules(service.http or NOBODY))
        folder = spool_folder(addresses.home, service.name)
        self._meter = RayMeter(service.name)
        self._recorder = Recorder(
            folder,
            lambda: store_of(addresses.store_url),
            on_outcomes=partial(count_outcomes, self._meter),
        )
        self._shadows = Shadows(self._live, self._stream, self._meter)
        self._loader = Loader(
            service.name, self, self._live, cache, set_http=self._set_http, report=self._report
        )
        self._sticky = Sticky(self._live, lambda: store_of(addresses.store_url))
        self._recorder.start()
        self._sticky.start()

    def app(self) -> App:
        """What HAProxy's requests come to."""
        return Traffic(
            self._openai,
            self._live,
            self._recorder,
            self._forwarder,
            meter=self._meter,
            shadows=self._shadows,
        )

    async def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Take the controller's newest preload list, traffic table and rules."""
        await self._loader.reconfigure(user_config)

    async def load(self, version: str, folder: Path) -> None:
        """Put an adapter into the engine under a name and a number that no other version ever has."""
        from vllm.lora.request import LoRARequest

        name = self._model(version)
        request = LoRARequest(lora_name=name, lora_int_id=int(version), lora_path=str(folder))
        await self._client.add_lora(request)
        self._adapters[name] = request

    async def unload(self, version: str) -> None:
        """Take an adapter out of the engine. While that fails it goes on answering."""
        await self._client.remove_lora(int(version))
        self._adapters.pop(self._model(version), None)

    async def warm(self, version: str, app: str | None) -> None:
        """Have the version answer one request."""
        async with asyncio.timeout(WARM_TIMEOUT_S):
            if app is None:
                await self._warm(self._model(version))
                return
            body = encode({"model": self._model(version), "prompt": [1], "max_tokens": 1})
            try:
                parts = await self._forwarder.stream(app, COMPLETIONS, body, "warm-up")
            except UnreachableError as error:  # its replicas may be starting still
                raise RetryableError(str(error)) from error
            async for part in parts:
                if isinstance(part, tuple) and part[0] != 200:
                    raise UserError(f"{app}: the warm-up request was answered with {part[0]}")

    async def _stream(
        self, app: str | None, path: str, body: bytes, request_id: str
    ) -> AsyncGenerator[Part, None]:
        """The answer of a version in this engine or in an application of its own, piece by piece."""
        if app is None:
            async with aclosing(drive(self._openai, path, body, request_id)) as own:
                async for part in own:
                    yield part
            return
        parts = await self._forwarder.stream(app, path, body, request_id)
        try:
            async for part in parts:
                yield part
        finally:
            parts.cancel()

    async def close(self) -> None:
        """End what was started, however far that came."""
        for part in ("_shadows", "_sticky", "_loader", "_recorder"):
            if hasattr(self, part):
                getattr(self, part).close()
        await super().close()

    def _model(self, version: str) -> str:
        return f"{self._spec.service.name}@{version}"

    def _rules(self, http: HttpSection) -> Rules:
        return Rules.of(
            http,
            model_tokens=self._client.model_config.max_model_len,
            max_in_flight=QUEUE_FACTOR * self._spec.service.engine.max_num_seqs,
        )

    def _set_http(self, http: HttpSection) -> None:
        require_keys_off_loopback(http, self._host)
        self._live.rules = self._rules(http)

    def _report(self, loaded: dict[str, str], revision: str) -> None:
        context = serve.get_replica_context()
        self._recorder.status(
            {
                "replica_id": context.replica_id.unique_id,
                "app": context.app_name,
                "service": self._spec.service.name,
                "revision": revision,
                "loaded": loaded,
            }
        )


class FullEngine(_Engine):
    """A replica of one full-model version. Requests come from the service's replicas by handle."""

    async def start(self) -> None:
        """Start the engine, and answer a first request."""
        folder = await asyncio.to_thread(full_model, self._spec, cache_folder(Addresses.resolve().home))
        model = f"{self._spec.service.name}@{self._spec.version}"
        await self._start(model, folder, lora=False)
        await self._warm(model)

    async def forward(self, path: str, body: bytes, request_id: str) -> AsyncGenerator[Part, None]:
        """Answer one request: that it was taken, status and headers, then the body piece by piece."""
        yield ACCEPTED
        async with aclosing(drive(self._openai, path, body, request_id)) as parts:
            async for part in parts:
                yield part
