"""A whole service under load: engine, MLflow, store and controller, each a process that can be killed."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil
from mlflow import MlflowClient
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import text

from seatrial.registry import versions
from seatrial.store import Store
from tests.serving import load, stage
from tests.store import postgres

SERVICE, BASE = "svc", "svc-base"
REPLICAS = 2
KINDS = 4
"""Adapters that answer differently; versions are copies of them."""
RPS = 25.0
ENGINE = {
    "dtype": "float32",
    "enforce_eager": True,
    "device": "cpu",
    "max_num_seqs": 16,
    "kv_cache_gib": 0.25,
    "max_model_len": 128,
    "max_loras": 4,
    "max_lora_rank": 8,
    "base": f"models:/{BASE}/1",
    "replicas": REPLICAS,
}
# Without outcomes the metric decides nothing: these trials end by their guardrail or by a person.
TRIAL = {"minimum_units": 40, "metric": {"name": "resolved", "missing": "exclude"}, "max_error_share": 0.1}


class Part:
    """A process that is started again with the same command after it was killed."""

    def __init__(self, command: list[str], log: Path, env: dict[str, str], health: str) -> None:
        self._command, self._log, self._env, self._health = command, log, env, health
        self._stack = ExitStack()
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and wait until it answers."""
        self._process = self._stack.enter_context(stage.process(self._command, self._log, self._env))
        stage.wait_until(lambda: stage.answers(self._health), 180, self._health)

    def kill(self) -> None:
        """SIGKILL it and all that it started."""
        assert self._process is not None
        family = [psutil.Process(self._process.pid), *psutil.Process(self._process.pid).children(True)]
        for each in family:
            each.kill()
        psutil.wait_procs(family, 10)

    def close(self) -> None:
        """End it."""
        self._stack.close()


@dataclass
class Fire:
    """The running service, its parts, and what each version must answer."""

    cluster: stage.Cluster
    store: Store
    mlflow_url: str
    mlflow: Part
    controller: Part
    base: Path
    kinds: list[Path]
    texts: dict[str, str]
    ref: versions.BaseRef
    folder: Path
    database: postgres.Server | None = None
    made: list[str] = field(default_factory=list)

    @property
    def client(self) -> MlflowClient:
        """MLflow's client."""
        return MlflowClient(tracking_uri=self.mlflow_url, registry_uri=self.mlflow_url)

    def make(self, kind: int, *, corrupt: bool = False) -> str:
        """Register one more version: a copy of an adapter, or one whose weights cannot be read."""
        folder = self.folder / f"version{len(self.made)}"
        stage.copy_of(self.kinds[kind % KINDS], folder)
        if corrupt:
            weights = folder / "adapter_model.safetensors"
            weights.write_bytes(weights.read_bytes()[:1000])
        version, _ = stage.register(
            self.mlflow_url, SERVICE, folder, kind="adapter", method="lora", base=self.ref, rank=8
        )
        shutil.rmtree(folder)
        self.made.append(version)
        if not corrupt:
            self.texts[version] = self.texts[f"kind{kind % KINDS}"]
        return version

    def make_full(self) -> str:
        """Register a whole model, which is served in an application of its own."""
        for seed in range(9, 40):
            folder = stage.make_base(self.folder / f"version{len(self.made)}", layers=2, seed=seed)
            said = stage.greedy_answer(folder, None, load.PROMPT, load.TOKENS)
            if said.isascii():
                break
        version, _ = stage.register(self.mlflow_url, SERVICE, folder, kind="full", method="full")
        self.texts[version] = said
        self.made.append(version)
        return version

    def alias(self, name: str, version: str) -> None:
        """What a person does in MLflow's pages."""
        self.client.set_registered_model_alias(SERVICE, name, version)

    def aliases(self) -> dict[str, str]:
        """All aliases of the service."""
        return dict(self.client.get_registered_model(SERVICE).aliases)

    def exposures(self, arm: str) -> int:
        """Rows of the store."""
        statement = text("select count(*) from exposures where arm = :arm")
        with self.store.engine.connect() as connection:
            return int(connection.execute(statement, {"arm": arm}).scalar_one())

    def metrics(self, name: str) -> list[tuple[dict[str, str], float]]:
        """The samples of a metric as Prometheus would read them from Ray's agent: labels and value."""
        page = httpx.get(self.cluster.metrics_url, timeout=30).text
        families = text_string_to_metric_families(page)
        return [(s.labels, s.value) for family in families for s in family.samples if s.name == name]

    def wait_served(self, version: str, running: load.Load, timeout_s: float = 120) -> float:
        """Seconds until an answer of ``version`` comes, and from then on no other."""
        began = time.monotonic()
        stage.wait_until(
            lambda: any(a.version == version for a in running.answers[-40:] if a.began >= began),
            *(timeout_s, f"an answer of version {version}", 0.05),
        )
        return time.monotonic() - began

    def pids(self, app: str = SERVICE) -> list[int]:
        """The processes of the running replicas."""
        found = self.cluster.application(app).get("deployments", {}).get("Engine", {}).get("replicas", [])
        return [each["pid"] for each in found if each["state"] == "RUNNING"]

    def answers(self) -> bool:
        """Whether every replica has the traffic in force that Serve was last told, with a champion."""
        app = self.cluster.application(SERVICE).get("deployed_app_config")
        if not app:
            return False
        told = app["deployments"][0]["user_config"]
        revisions = [row["revision"] for row in self.store.replicas(SERVICE)]
        return bool(told["traffic"]) and revisions == [told["revision"]] * REPLICAS

    def wait_replicas(self, gone: int | None = None, timeout_s: float = 240) -> float:
        """Seconds until all replicas run and have reported, none of them the process ``gone``."""
        began = time.monotonic()
        stage.wait_until(
            lambda: len(pids := self.pids()) == REPLICAS and gone not in pids, timeout_s, "the replicas"
        )
        return time.monotonic() - began


def kill(pid: int) -> None:
    """SIGKILL."""
    os.kill(pid, signal.SIGKILL)


def hang(pid: int) -> None:
    """The process answers nothing any more, and its connections stay open."""
    os.kill(pid, signal.SIGSTOP)


def kill_engine(pid: int) -> None:
    """The engine inside a replica dies: vLLM answers every request with 500."""
    for child in psutil.Process(pid).children(recursive=True):
        child.kill()


def _service() -> dict[str, Any]:
    from seatrial.config.service import ServiceConfig

    keys = [{"name": "test", "sha256": stage.KEY_SHA256}]
    http = {"keys": keys, "max_tokens": 64, "request_timeout_s": 20}
    config = {"name": SERVICE, "engine": ENGINE, "http": http, "trial": TRIAL}
    return ServiceConfig.model_validate(config).model_dump(mode="json")


def _kinds(base: Path, folder: Path) -> tuple[list[Path], dict[str, str]]:
    """Adapters, and what transformers and PEFT answer with each: different texts, and plain ones.

    Half a character at the end of an answer is shown when it is given whole, and left out of a stream.
    """
    kinds: list[Path] = []
    texts: dict[str, str] = {}
    for seed in range(1, 40):
        path = stage.make_adapter(base, folder / f"seed{seed}", seed=seed)
        said = stage.greedy_answer(base, path, load.PROMPT, load.TOKENS)
        if said.isascii() and said not in texts.values():
            texts[f"kind{len(kinds)}"] = said
            kinds.append(path)
        if len(kinds) == KINDS:
            return kinds, texts
    raise AssertionError("too few adapters with plain answers")


def _mlflow(folder: Path) -> tuple[str, Part]:
    folder.mkdir()
    url = f"http://127.0.0.1:{(port := stage.free_port())}"
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--backend-store-uri", f"sqlite:///{folder / 'mlflow.db'}", "--workers", "1"]
    command += ["--serve-artifacts", "--artifacts-destination", str(folder / "artifacts")]
    settings = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    return url, Part(command, folder / "mlflow.log", {**os.environ, **settings}, f"{url}/health")


def _controller(cluster: stage.Cluster, store_url: str, mlflow_url: str, folder: Path) -> Part:
    url = f"http://127.0.0.1:{stage.free_port()}"
    env = {
        **os.environ,
        "MLFLOW_TRACKING_URI": mlflow_url,
        "RAY_API_SERVER_ADDRESS": cluster.dashboard,
        "RAY_AUTH_MODE": "disabled",
        "SEATRIAL_SERVE_URL": cluster.serve_url,
        "SEATRIAL_CONTROLLER_URL": url,
        "SEATRIAL_STORE_URL": store_url,
        "SEATRIAL_HOME": str(cluster.home),
        "SEATRIAL_POLL_S": "0.5",
    }
    command = [sys.executable, "-m", "seatrial.controller"]
    return Part(command, folder / "controller.log", env, f"{url}/healthz")


@contextmanager
def on_fire(folder: Path, *, is_postgresql: bool = False) -> Iterator[Fire]:
    """Start everything, with a champion that answers; the store is PostgreSQL or SQLite."""
    base = stage.make_base(folder / "base")
    kinds, texts = _kinds(base, folder)
    mlflow_url, mlflow = _mlflow(folder / "mlflow")
    with ExitStack() as stack:
        stack.callback(mlflow.close)
        mlflow.start()
        database = stack.enter_context(postgres.server()) if is_postgresql else None
        store_url = database.url if database else f"sqlite:///{folder / 'store.db'}"
        told = {"MLFLOW_TRACKING_URI": mlflow_url, "SEATRIAL_STORE_URL": store_url}
        cluster = stack.enter_context(stage.ray_cluster(folder / "ray", told))
        _, digest = stage.register(mlflow_url, BASE, base, kind="full", method="full")
        ref = versions.BaseRef(ref=f"models:/{BASE}/1", digest=digest)
        store = Store(store_url)
        store.migrate()
        stack.callback(store.close)
        controller = _controller(cluster, store_url, mlflow_url, folder)
        stack.callback(controller.close)
        parts = (cluster, store, mlflow_url, mlflow, controller)
        fire = Fire(*parts, base, kinds, texts, ref, folder, database)
        fire.alias("champion", fire.make(0))
        store.put_service(SERVICE, _service(), now=time.time())
        controller.start()
        stage.wait_until(lambda: cluster.application(SERVICE), 180, "the application")
        cluster.wait_running(SERVICE)
        stage.wait_until(fire.answers, 120, "a champion in every replica")
        yield fire
