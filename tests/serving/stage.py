"""Real parts for the serving tests and benchmarks: a tiny model, adapters, MLflow, a private Ray cluster.

Everything is started on ports of its own and taken down with every process that it started.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil

from seatrial.stack.haproxy import SETTINGS, write_wrapper

KEY = "sk-test-only"
KEY_SHA256 = hashlib.sha256(KEY.encode()).hexdigest()
MARK = "SEATRIAL_TEST_STAGE"


def free_port() -> int:
    """A TCP port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def listens(port: int) -> bool:
    """Whether somebody accepts connections on loopback's ``port``."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def wait_until(check: Callable[[], Any], timeout_s: float, what: str, every_s: float = 0.3) -> Any:
    """The first true result of ``check``; raises TimeoutError."""
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        found = check()
        if found:
            return found
        time.sleep(every_s)
    raise TimeoutError(f"{what}: not within {timeout_s} s")


def make_base(
    folder: Path, *, hidden: int = 192, layers: int = 4, positions: int = 512, seed: int = 0
) -> Path:
    """A random Llama (3 million parameters by default) with a trained tokenizer and a chat template."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from seatrial_jobs.tokenizer import train_tokenizer

    texts = [path.read_text(encoding="utf-8") for path in sorted(Path(os.__file__).parent.glob("a*.py"))]
    tokenizer = train_tokenizer(texts, 2048)
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=512,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 32,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=positions,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=1,
        initializer_range=0.2,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder, save_jinja_files=False)
    return folder


def make_adapter(base: Path, folder: Path, *, seed: int, rank: int = 8) -> Path:
    """A LoRA adapter with random weights, large enough to change every answer."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base)
    torch.manual_seed(seed)
    lora = get_peft_model(
        model, LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="CAUSAL_LM")
    )
    with torch.no_grad():
        for name, weight in lora.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.2)
    lora.save_pretrained(folder)
    (folder / "README.md").unlink(missing_ok=True)
    return folder


def greedy_answer(base: Path, adapter: Path | None, messages: list[dict[str, str]], tokens: int) -> str:
    """What transformers and PEFT answer, in float32, with the adapter or with the base alone."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    if adapter is not None:
        model = PeftModel.from_pretrained(model, adapter)
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt")
    with torch.no_grad():
        answer = model.generate(**prompt, max_new_tokens=tokens, do_sample=False)
    given = prompt["input_ids"].shape[1]
    return str(tokenizer.decode(answer[0, given:], skip_special_tokens=True))


@contextmanager
def process(command: list[str], log: Path, env: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """A child in a session of its own; at the end it and all that it started are gone."""
    mark = uuid.uuid4().hex
    with log.open("ab") as out:
        child = subprocess.Popen(
            command, stdout=out, stderr=out, env={**env, MARK: mark}, start_new_session=True
        )
        try:
            yield child
        finally:
            _end(child, mark)


def _end(child: subprocess.Popen[bytes], mark: str) -> None:
    child.terminate()
    try:
        child.wait(10)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()
    for left in psutil.process_iter():
        try:
            if left.environ().get(MARK) == mark:
                left.kill()
        except psutil.Error:
            continue


@contextmanager
def s3_server(folder: Path) -> Iterator[dict[str, str]]:
    """rclone serves ``folder`` on loopback, a bucket a subfolder; the variables with which boto3 finds it."""
    port, key, secret = free_port(), uuid.uuid4().hex, uuid.uuid4().hex
    command = [str(Path(sys.executable).with_name("rclone")), "serve", "s3", str(folder)]
    command += ["--addr", f"127.0.0.1:{port}", "--auth-key", f"{key},{secret}"]
    with process(command, folder.with_suffix(".log"), dict(os.environ)):
        wait_until(lambda: listens(port), 30, "the S3 server")
        yield {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
            "AWS_ACCESS_KEY_ID": key,
            "AWS_SECRET_ACCESS_KEY": secret,
            "AWS_DEFAULT_REGION": "us-east-1",
        }


@contextmanager
def mlflow_server(
    folder: Path, artifacts: str | None = None, env: dict[str, str] | None = None
) -> Iterator[str]:
    """A real tracking server and registry, with its artifacts in a folder or at a URL; its address."""
    folder.mkdir(parents=True, exist_ok=True)
    url = f"http://127.0.0.1:{(port := free_port())}"
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--backend-store-uri", f"sqlite:///{folder / 'mlflow.db'}", "--workers", "1"]
    command += ["--serve-artifacts", "--artifacts-destination", artifacts or str(folder / "artifacts")]
    settings = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with process(command, folder / "mlflow.log", {**os.environ, **settings, **(env or {})}):
        wait_until(lambda: answers(f"{url}/health"), 90, "MLflow")
        yield url


def answers(url: str) -> bool:
    """Whether a GET is answered with 200."""
    try:
        return httpx.get(url, timeout=2).status_code == 200
    except httpx.HTTPError:
        return False


def register(mlflow_url: str, name: str, folder: Path, **manifest: Any) -> tuple[str, str]:
    """Log ``folder`` as a version of ``name``: (version, digest)."""
    from mlflow import MlflowClient

    from seatrial.registry import versions

    written = versions.write_manifest(folder, **manifest)
    client = MlflowClient(tracking_uri=mlflow_url, registry_uri=mlflow_url)
    known = client.get_experiment_by_name("stage")
    experiment = known.experiment_id if known else client.create_experiment("stage")
    run = client.create_run(experiment)
    client.log_artifacts(run.info.run_id, str(folder), "model")
    version = versions.register(name, run.info.run_id, written, uri=mlflow_url)
    return version, written.digest


def copy_of(folder: Path, other: Path) -> Path:
    """The weights and configuration of ``folder``, without its manifest."""
    shutil.copytree(folder, other, ignore=shutil.ignore_patterns("seatrial.json"))
    return other


def user_config(
    service: str,
    made: list[tuple[str, str]],
    *,
    revision: str = "r1",
    champion: int = 0,
    challenger: int | None = 1,
    http: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """A user_config as the controller sends it: preload all of ``made``, split between two of them."""
    aliases, trial = {"champion": made[champion][0]}, None
    if challenger is not None:
        aliases["challenger"] = made[challenger][0]
        arms = [{"name": name, "version": version, "weight": 0.5} for name, version in aliases.items()]
        trial = {"id": f"{service}-1", "seed": f"{service}-1", "coverage": 1.0, "arms": arms}
    rules = {"keys": [{"name": "test", "sha256": KEY_SHA256}], "max_tokens": 64, **(http or {})}
    preload = [{"version": version, "kind": "adapter", "digest": digest} for version, digest in made]
    return {
        "service": service,
        "revision": revision,
        "http": rules,
        "preload": preload,
        "traffic": {"aliases": aliases, "trial": trial},
    }


def application(service: str, engine: dict[str, Any], config: dict[str, Any]) -> dict[str, Any]:
    """A service's entry of the declarative config."""
    return {
        "name": service,
        "route_prefix": "/",
        "import_path": "seatrial_serving.application:build",
        "args": {"service": {"name": service, "engine": engine}},
        "deployments": [{"name": "Engine", "user_config": config}],
    }


@dataclass(frozen=True)
class Cluster:
    """A Ray head with Serve: where it answers, and the folder of its files."""

    dashboard: str
    serve_url: str
    home: Path
    ray_address: str
    metrics_url: str

    def put(self, applications: list[dict[str, Any]]) -> None:
        """Declare all applications; the first time, Serve starts before it answers."""
        port = int(self.serve_url.rsplit(":", 1)[1])
        body = {"http_options": {"host": "127.0.0.1", "port": port}, "applications": applications}
        httpx.put(f"{self.dashboard}/api/serve/applications/", json=body, timeout=180).raise_for_status()

    def application(self, name: str) -> dict[str, Any]:
        """What Serve says of an application; empty while it does not know it."""
        return dict(self.applications().get(name, {}))

    def applications(self) -> dict[str, Any]:
        """What Serve says of each application that it knows, asked until it says something."""
        answer = wait_until(self._asked, 120, "Serve's applications")
        return dict(answer.json().get("applications", {}))

    def _asked(self) -> httpx.Response | None:
        try:
            answer = httpx.get(f"{self.dashboard}/api/serve/applications/", timeout=30)
        except httpx.TransportError:
            return None
        return answer if answer.status_code == 200 else None

    def wait_running(self, name: str, timeout_s: float = 400) -> None:
        """Return when the application runs; RuntimeError with Serve's message when it cannot."""

        def check() -> bool:
            found = self.application(name)
            if found.get("status") in ("DEPLOY_FAILED", "UNHEALTHY"):
                raise RuntimeError(json.dumps(found, default=str)[-3000:])
            return found.get("status") == "RUNNING"

        wait_until(check, timeout_s, name, every_s=0.5)


def serve_environment(folder: Path, *, haproxy: bool = True) -> dict[str, str]:
    """Ray Serve's settings with which clusters on one machine do not meet. Ports are taken as free."""
    if not haproxy:
        return {}
    base = 30000 + (os.getpid() * 37) % 20000
    return {
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
        **SETTINGS,
        "RAY_SERVE_HAPROXY_BINARY_PATH": str(write_wrapper(folder)),
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(folder / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(folder / "admin.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(folder),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(folder / "server-state"),
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(folder / "metrics.sock"),
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(free_port()),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(free_port()),
        "RAY_SERVE_HAPROXY_NBTHREAD": "1",
        "RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT": str(base),
        "RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT": str(base + 200),
        "RAY_SERVE_DIRECT_INGRESS_MIN_GRPC_PORT": str(base + 300),
        "RAY_SERVE_DIRECT_INGRESS_MAX_GRPC_PORT": str(base + 500),
    }


@contextmanager
def ray_cluster(
    folder: Path, env: dict[str, str], *, haproxy: bool = True, num_cpus: int = 8
) -> Iterator[Cluster]:
    """A private Ray head on loopback; ``env`` is what its jobs and replicas inherit."""
    folder.mkdir(parents=True, exist_ok=True)
    # Unix socket paths may have 107 bytes, which a test's folder easily exceeds.
    short = Path("/tmp") / f"st-{uuid.uuid4().hex[:8]}"
    short.mkdir(mode=0o700)
    ports = {
        name: free_port()
        for name in ("gcs", "dashboard", "client", "agent", "agent_grpc", "metrics", "serve")
    }
    environment = {
        **os.environ,
        **env,
        **serve_environment(short, haproxy=haproxy),
        "RAY_AUTH_MODE": "disabled",
        "RAY_raylet_start_wait_time_s": "180",
        "SEATRIAL_HOME": str(folder / "home"),
    }
    command = [
        str(Path(sys.executable).with_name("ray")),
        "start",
        "--head",
        "--block",
        "--disable-usage-stats",
    ]
    command += ["--node-ip-address=127.0.0.1", f"--num-cpus={num_cpus}", f"--temp-dir={short}"]
    command += [f"--port={ports['gcs']}", f"--dashboard-port={ports['dashboard']}"]
    command += [f"--ray-client-server-port={ports['client']}", f"--metrics-export-port={ports['metrics']}"]
    command += [f"--dashboard-agent-listen-port={ports['agent']}"]
    command += [f"--dashboard-agent-grpc-port={ports['agent_grpc']}", "--object-store-memory=200000000"]
    cluster = Cluster(
        f"http://127.0.0.1:{ports['dashboard']}",
        f"http://127.0.0.1:{ports['serve']}",
        folder / "home",
        f"127.0.0.1:{ports['gcs']}",
        f"http://127.0.0.1:{ports['metrics']}/metrics",
    )
    try:
        with process(command, folder / "ray.log", environment):
            wait_until(lambda: answers(f"{cluster.dashboard}/api/serve/applications/"), 240, "Ray")
            yield cluster
    finally:
        logs = short / "session_latest" / "logs"
        if logs.exists():
            shutil.copytree(logs, folder / "ray-logs", dirs_exist_ok=True)
        shutil.rmtree(short, ignore_errors=True)
