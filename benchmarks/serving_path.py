"""Our serving path beside vLLM's own server and Ray Serve LLM's default, on the same model and prompts.

    python -m benchmarks.serving_path [--requests 240] [--rounds 3] [--trial]

- `ours`: a service with a live 50/50 split between two adapters, API key, exposures recorded.
- `vllm`: vLLM's own OpenAI server without Ray, the same two adapters, requests alternating between them.
- `ray_default`: `ray.serve.llm.build_openai_app` with its defaults and Ray's own proxy, the same two adapters
  in turn; it takes them from S3 only, so an S3 server on loopback holds them.

One path after the other is started, warmed, measured and taken down. The same engine arguments and thread
settings go to all three; on CPUs ours alone has two things besides, which are part of what it is: scheduler
and model in one process, and a worker (`cpu_lora.Worker`) that groups the adapters' products by adapter.
Prints one JSON object per case: requests per second (the median of the rounds), median and 95th percentile
of the latency, and our ratio to each peer.

`--trial` instead measures what a trial costs, in one running service, in rounds that alternate: `trial` asks
for the service, so that each request is split, watched and recorded; `pinned` asks for the two versions in
turn, which is the same path and the same work for the engine without a trial.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import shutil
import statistics
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

from seatrial.config.service import EngineSection
from seatrial_serving.spec import engine_kwargs, environment
from tests.serving import stage

RAY_ADAPTERS = Path("/tmp/ray/llm/lora/cache")  # noqa: S108
SERVICE = "bench"
TOKENS = 16
ENGINE = EngineSection(
    base="bench", device="cpu", max_num_seqs=32, kv_cache_gib=0.5, max_loras=2, max_lora_rank=8
)
TEXT = "the ship sails at dawn with a small crew and returns when wind and tide allow it"


@dataclass(frozen=True)
class Case:
    """One way of asking."""

    name: str
    concurrency: int
    is_stream: bool


CASES = (Case("chat", 1, False), Case("chat", 8, False), Case("stream", 1, True), Case("stream", 8, True))


@dataclass(frozen=True)
class Target:
    """Where to ask: ``models`` are taken in turn."""

    url: str
    models: tuple[str, ...]
    headers: dict[str, str]


def prompts(count: int) -> list[str]:
    """Short prompts, the same for every path and run."""
    source = random.Random(0)  # noqa: S311
    return [" ".join(source.choices(TEXT.split(), k=8)) for _ in range(count)]


async def measure(target: Target, case: Case, texts: list[str]) -> tuple[float, list[float]]:
    """Requests per second, and each request's latency in seconds."""
    queue = list(enumerate(texts))
    latencies: list[float] = []
    connector = aiohttp.TCPConnector(limit=case.concurrency)
    async with aiohttp.ClientSession(connector=connector, headers=target.headers) as session:

        async def client() -> None:
            while queue:
                index, text = queue.pop()
                began = time.perf_counter()
                await ask(session, target, case, index, text)
                latencies.append(time.perf_counter() - began)

        began = time.perf_counter()
        await asyncio.gather(*(client() for _ in range(case.concurrency)))
        return len(texts) / (time.perf_counter() - began), latencies


async def ask(session: aiohttp.ClientSession, target: Target, case: Case, index: int, text: str) -> None:
    """One request; its answer is read to the end and must be whole."""
    body = {
        "model": target.models[index % len(target.models)],
        "messages": [{"role": "user", "content": text}],
        "max_tokens": TOKENS,
        "temperature": 0,
        "ignore_eos": True,
        "stream": case.is_stream,
        "user": f"reader-{index}",
    }
    async with session.post(f"{target.url}/v1/chat/completions", json=body) as answer:
        content = await answer.read()
    assert answer.status == 200, content[:300]
    assert (b"data: [DONE]" if case.is_stream else b'"completion_tokens":16') in content, content[-300:]


def run_cases(target: Target, requests: int, rounds: int) -> dict[Case, dict[str, float]]:
    """Every case, after a warm-up."""

    async def all_cases() -> dict[Case, dict[str, float]]:
        for case in CASES:
            await measure(target, case, prompts(24))
        found: dict[Case, list[tuple[float, list[float]]]] = {case: [] for case in CASES}
        for _ in range(rounds):
            for case in CASES:
                count = requests if case.concurrency > 1 else requests // 4
                found[case].append(await measure(target, case, prompts(count)))
        return {case: summary(results) for case, results in found.items()}

    return asyncio.run(all_cases())


def summary(results: list[tuple[float, list[float]]]) -> dict[str, float]:
    """Of all rounds: the median rate, and percentiles over every request."""
    latencies = sorted(latency for _, found in results for latency in found)
    return {
        "rps": statistics.median(rate for rate, _ in results),
        "p50_ms": 1000 * latencies[len(latencies) // 2],
        "p95_ms": 1000 * latencies[int(len(latencies) * 0.95)],
    }


@contextmanager
def ours(folder: Path, base: Path, adapters: list[Path]) -> Iterator[Target]:
    """The service, deployed as the controller does it."""
    from seatrial.registry import versions
    from seatrial.store import Store

    with stage.mlflow_server(folder / "mlflow") as mlflow_url:
        ref = versions.BaseRef(ref=str(base), digest=versions.folder_digest(base))
        made = [
            stage.register(mlflow_url, SERVICE, path, kind="adapter", method="lora", base=ref, rank=8)
            for path in adapters
        ]
        with stage.ray_cluster(folder / "ours", {"MLFLOW_TRACKING_URI": mlflow_url}) as cluster:
            Store(f"sqlite:///{cluster.home / 'store.db'}").migrate()
            cluster.put([stage.application(SERVICE, engine(base), stage.user_config(SERVICE, made))])
            cluster.wait_running(SERVICE, timeout_s=600)
            yield Target(cluster.serve_url, (SERVICE,), {"Authorization": f"Bearer {stage.KEY}"})


@contextmanager
def vllm_alone(folder: Path, base: Path, adapters: list[Path]) -> Iterator[Target]:
    """`python -m vllm.entrypoints.openai.api_server`."""
    port = stage.free_port()
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--host", "127.0.0.1"]
    command += ["--port", str(port), "--model", str(base), "--disable-uvicorn-access-log"]
    for name, value in engine_kwargs(ENGINE, device="cpu", lora=True).items():
        flag = "--" + name.replace("_", "-")
        if value is True:
            command.append(flag)
        elif value is not False:
            command += [flag, str(value)]
    names = [f"adapter-{index}" for index, _ in enumerate(adapters)]
    command += ["--lora-modules", *(f"{name}={path}" for name, path in zip(names, adapters, strict=True))]
    env = {**os.environ, **environment(ENGINE, device="cpu")}
    with stage.process(command, folder / "vllm.log", env):
        url = f"http://127.0.0.1:{port}"
        stage.wait_until(lambda: stage.answers(f"{url}/health"), 600, "vLLM's server")
        yield Target(url, tuple(names), {})


@contextmanager
def ray_default(folder: Path, base: Path, adapters: list[Path]) -> Iterator[Target]:
    """`ray.serve.llm.build_openai_app` as its documentation starts it, on the CPU."""
    # Ray keeps what it fetched under one folder for the whole machine, by name: names must be new.
    names = [f"bench-{uuid.uuid4().hex[:8]}" for _ in adapters]
    for name, path in zip(names, adapters, strict=True):
        shutil.copytree(path, folder / "s3" / "adapters" / name)
    config = {
        "lora_config": {"dynamic_lora_loading_path": "s3://adapters", "max_num_adapters_per_replica": 2},
        "model_loading_config": {"model_id": SERVICE, "model_source": str(base)},
        "engine_kwargs": engine_kwargs(ENGINE, device="cpu", lora=True),
        "accelerator_config": {"kind": "cpu"},
        "placement_group_config": {"bundles": [{"CPU": 1}]},
        "runtime_env": {"env_vars": environment(ENGINE, device="cpu")},
    }
    with (
        stage.s3_server(folder / "s3") as s3,
        stage.ray_cluster(folder / "default", s3, haproxy=False) as cluster,
    ):
        app = {"name": SERVICE, "route_prefix": "/", "import_path": "ray.serve.llm:build_openai_app"}
        cluster.put([{**app, "args": {"llm_configs": [config]}}])
        cluster.wait_running(SERVICE, timeout_s=600)
        yield Target(cluster.serve_url, tuple(f"{SERVICE}:{name}" for name in names), {})
    for name in names:
        shutil.rmtree(RAY_ADAPTERS / name, ignore_errors=True)


def engine(base: Path) -> dict[str, Any]:
    """The engine section of our service."""
    return ENGINE.model_copy(update={"base": str(base)}).model_dump(mode="json")


def main() -> None:
    """Measure all three and print a line for each case."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument(
        "--requests", type=int, default=240, help="of a round at concurrency 8; a quarter at 1"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--trial", action="store_true", help="what a trial costs, beside the same path without"
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="seatrial-bench-") as name:
        folder = Path(name)
        base = stage.make_base(folder / "base")
        adapters = [stage.make_adapter(base, folder / f"adapter{seed}", seed=seed) for seed in (1, 2)]
        if options.trial:
            with ours(folder, base, adapters) as target:
                report_trial(target, options.requests, options.rounds)
            return
        found = {}
        plain = [stage.copy_of(path, folder / f"plain-{path.name}") for path in adapters]
        for path, context in (
            ("vllm", vllm_alone(folder, base, plain)),
            ("ours", ours(folder, base, adapters)),
            ("ray_default", ray_default(folder, base, plain)),
        ):
            with context as target:
                found[path] = run_cases(target, options.requests, options.rounds)
            rates = {f"{case.name} {case.concurrency}": round(r["rps"], 1) for case, r in found[path].items()}
            print(f"{path}: {rates}", file=sys.stderr, flush=True)
    for case in CASES:
        report(case, {path: results[case] for path, results in found.items()})


def report_trial(target: Target, requests: int, rounds: int) -> None:
    """A JSON line for each case at concurrency 8: the rates of both, and the median ratio of the pairs."""
    pinned = Target(target.url, (f"{SERVICE}@1", f"{SERVICE}@2"), target.headers)

    async def pairs(case: Case) -> list[tuple[float, float]]:
        found = []
        for turn in range(rounds + 1):
            both = {"trial": target, "pinned": pinned}
            order = list(both) if turn % 2 else list(reversed(both))
            rates = {name: (await measure(both[name], case, prompts(requests)))[0] for name in order}
            found.append((rates["trial"], rates["pinned"]))
        return found[1:]  # the first warms up

    for case in (case for case in CASES if case.concurrency > 1):
        found = asyncio.run(pairs(case))
        line = {
            "benchmark": "serving_path",
            "case": f"{case.name}, trial against no trial",
            "concurrency": case.concurrency,
            "trial_rps": round(statistics.median(rate for rate, _ in found), 1),
            "pinned_rps": round(statistics.median(rate for _, rate in found), 1),
            "ratio": round(statistics.median(mine / other for mine, other in found), 3),
            "ratios": [round(mine / other, 3) for mine, other in found],
        }
        print(json.dumps(line), flush=True)


def report(case: Case, found: dict[str, dict[str, float]]) -> None:
    """One JSON line."""
    rates = {path: result["rps"] for path, result in found.items()}
    line = {
        "benchmark": "serving_path",
        "case": case.name,
        "concurrency": case.concurrency,
        "tokens": TOKENS,
        **{path: {name: round(value, 1) for name, value in result.items()} for path, result in found.items()},
        "ratio_to_vllm": round(rates["ours"] / rates["vllm"], 3),
        "ratio_to_ray_default": round(rates["ours"] / rates["ray_default"], 3),
        "note": "two adapters each; ours splits by user and records exposures, the others take turns; "
        "ours alone runs scheduler and model in one process and groups adapter products (cpu_lora.Worker)",
    }
    print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
