"""What `seatrial deploy` reads: one endpoint, its engine and its rules."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from seatrial.config.section import PositiveInt, Section, Slug
from seatrial.config.trial import TrialSection

RESERVED = ("health", "v1")
"""Names that are routes already."""


def _free(name: str) -> str:
    if name in RESERVED:
        raise ValueError(f"is a route of every service: name it {name}-chat, for example")
    if "--" in name:  # NAME--vN is the application of a whole-model version
        raise ValueError(f"`--` is kept for the versions of a service: write {re.sub('-+', '-', name)}")
    return name


class EngineSection(Section):
    """The vLLM engine behind the endpoint."""

    base: str = Field(min_length=1)
    """Base model: `models:/NAME/VERSION`, a directory, or a Hugging Face hub name."""
    revision: str | None = None
    """Commit or tag of a hub model."""
    device: Literal["auto", "cpu", "gpu"] = "auto"
    """What the engine runs on; `auto` takes a GPU when the cluster has one."""
    replicas: PositiveInt = 1
    """Engine processes."""
    cpus: Annotated[float, Field(gt=0)] = 1.0
    """Logical CPUs reserved for a replica."""
    tensor_parallel: PositiveInt = 1
    """GPUs that share one replica's weights."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Type of the weights in the engine."""
    max_model_len: PositiveInt | None = None
    """Longest prompt plus answer, in tokens; the model's own limit when not given."""
    max_num_seqs: PositiveInt = 64
    """Requests that are computed together."""
    kv_cache_gib: Annotated[float, Field(gt=0)] = 1.0
    """Memory for the key-value cache on a CPU, in GiB."""
    gpu_memory_share: Annotated[float, Field(gt=0, le=1)] = 0.9
    """Share of a GPU's memory that the engine takes."""
    max_loras: PositiveInt = 4
    """Adapters that one batch can mix."""
    max_lora_rank: Literal[8, 16, 32, 64, 128, 256, 320, 512] = 16
    """Largest rank of an adapter."""
    enforce_eager: bool = False
    """Skip graph capture and compilation: faster to start, slower to run."""


class KeySection(Section):
    """One client's API key, stored as a hash."""

    name: Slug
    """Who holds it."""
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    """SHA-256 of the key, in hexadecimal; `seatrial key` prints a new key and this."""


class HttpSection(Section):
    """Where and to whom the endpoint answers."""

    keys: tuple[KeySection, ...] = ()
    """Clients that may call."""
    allow_anonymous: bool = False
    """Answer without a key; only accepted while Ray Serve listens on loopback."""
    max_body_bytes: Annotated[int, Field(ge=1024, le=64 * 2**20)] = 256 * 1024
    """Largest request body."""
    max_tokens: PositiveInt = 512
    """Largest `max_tokens` of a request, and its value where a request gives none."""
    max_n: PositiveInt = 4
    """Largest `n` of a request."""
    request_timeout_s: Annotated[float, Field(gt=0, le=3600)] = 120.0
    """Seconds within which a request must be read, an answer must come, and each token of a stream."""

    @model_validator(mode="after")
    def _somebody_may_call(self) -> HttpSection:
        if not self.keys and not self.allow_anonymous:
            raise ValueError("give at least one of `keys`, or `allow_anonymous: true` on loopback")
        return self


class ServiceConfig(Section):
    """One service: a registered model and the endpoint that serves it."""

    name: Annotated[Slug, AfterValidator(_free)]
    """Name of the registered model, of the endpoint, and of `model` in requests."""
    engine: EngineSection
    """The vLLM engine behind it."""
    http: HttpSection
    """Who may call, and how much."""
    trial: TrialSection = TrialSection()
    """Policy of the trials that it opens."""
