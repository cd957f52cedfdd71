"""What an application's `args` say, and the engine's options that follow from it. No Ray, no vLLM."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from pydantic import Field, field_validator

from seatrial.config.section import Section, Slug
from seatrial.config.service import EngineSection, HttpSection
from seatrial.errors import UserError

# Requests that may wait behind those that are computed, as a multiple of them.
QUEUE_FACTOR = 16
# The largest `http.request_timeout_s`: a replica that is replaced waits that long for its last request.
MOST_REQUEST_S = 3600.0


class ServiceSpec(Section):
    """The part of a service that its replicas are built from: a change here replaces them."""

    name: Slug
    engine: EngineSection
    http: HttpSection | None = None
    """Rules from birth on; `http` in the user_config is put in force without a restart."""

    @field_validator("engine")
    @classmethod
    def _cpus_are_whole_or_less(cls, engine: EngineSection) -> EngineSection:
        if engine.cpus > 1 and engine.cpus != int(engine.cpus):
            raise ValueError(f"engine.cpus: {engine.cpus}: give a whole number, or less than 1")
        return engine


class Spec(Section):
    """The `args` of an application."""

    service: ServiceSpec
    base_path_ref: str | None = None
    """The base with its alias pinned; `service.engine.base` when not given."""
    attempt: float = 0.0
    """When a person asked for it; another value starts the replicas anew."""
    version: str | None = Field(default=None, pattern=r"^[1-9][0-9]*$")
    """The full model that `build_full` serves."""
    digest: str | None = None
    """Its digest."""

    @field_validator("service", mode="before")
    @classmethod
    def _without_policy(cls, value: Any) -> Any:
        """A whole ServiceConfig is welcome; the trial's policy is the controller's alone."""
        return {k: v for k, v in value.items() if k != "trial"} if isinstance(value, dict) else value

    @property
    def base(self) -> str:
        """The base model's reference."""
        return self.base_path_ref or self.service.engine.base


def choose_device(engine: EngineSection, gpus: float) -> str:
    """`cpu` or `gpu`, in a cluster with that many GPUs.

    Raises:
        UserError: a model that must be spread over GPUs would come to lie on a CPU.
    """
    if engine.device != "auto":
        return engine.device
    if gpus >= engine.tensor_parallel:
        return "gpu"
    if engine.tensor_parallel > 1:
        raise UserError(
            f"engine.tensor_parallel: {engine.tensor_parallel}: the cluster has {gpus:g} GPUs: "
            "give as many as it has, or `engine.device: gpu` to wait for more"
        )
    return "cpu"


def placement(engine: EngineSection, *, device: str) -> dict[str, Any]:
    """The resources of one replica, all of them on one node: the model's files are in that node's cache."""
    worker: dict[str, float] = {"GPU": 1} if device == "gpu" else {"CPU": engine.cpus}
    return {"bundle_per_worker": worker, "strategy": "STRICT_PACK"}


def replica_cpus(engine: EngineSection, *, device: str) -> float:
    """CPUs of the replica's own process; without a GPU its one worker has them."""
    return engine.cpus if device == "gpu" else 0


def bundles(engine: EngineSection, *, device: str) -> list[dict[str, float]]:
    """One for each of the engine's workers; the replica's process shares the first one's."""
    worker: dict[str, float] = placement(engine, device=device)["bundle_per_worker"]
    first = {"CPU": worker.get("CPU", 0) + replica_cpus(engine, device=device)}
    return [worker | first, *(dict(worker) for _ in range(1, engine.tensor_parallel))]


def engine_kwargs(engine: EngineSection, *, device: str, lora: bool) -> dict[str, Any]:
    """Arguments of vLLM's engine."""
    kwargs: dict[str, Any] = {
        "dtype": engine.dtype,
        "max_num_seqs": engine.max_num_seqs,
        # Compiling for the CPU needs a C++ compiler on the machine; with adapters vLLM never does it there.
        "enforce_eager": engine.enforce_eager or (device == "cpu" and (lora or not shutil.which("g++"))),
        "tensor_parallel_size": engine.tensor_parallel,
        "trust_remote_code": False,
        "load_format": "safetensors",
        "enable_log_requests": False,
        # Copies for a shadow come after everything that a client waits for.
        "scheduling_policy": "priority",
    }
    if engine.max_model_len is not None:
        kwargs["max_model_len"] = engine.max_model_len
    if device == "gpu":
        kwargs["gpu_memory_utilization"] = engine.gpu_memory_share
    else:
        kwargs["kv_cache_memory_bytes"] = int(engine.kv_cache_gib * 2**30)
    if lora:
        kwargs |= {
            "enable_lora": True,
            "max_loras": engine.max_loras,
            "max_lora_rank": engine.max_lora_rank,
            "max_cpu_loras": max(16, 2 * engine.max_loras),
        }
    return kwargs


def environment(engine: EngineSection, *, device: str) -> dict[str, str]:
    """Variables of a replica's process and of the engine processes that it starts."""
    shared = {
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_MAX_N_SEQUENCES": "64",
        "TOKENIZERS_PARALLELISM": "false",
    }
    if device == "gpu":
        return shared
    return shared | {
        # Bound threads of two replicas would sit on the same cores; the kernel spreads unbound ones.
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "OMP_NUM_THREADS": str(max(1, int(engine.cpus))),
    }


def cache_folder(home: Path) -> Path:
    """Where verified versions are kept on a machine."""
    return home / "cache" / "versions"


def spool_folder(home: Path, service: str) -> Path:
    """Where a service's unsent records are kept on a machine."""
    return home / "spool" / service
