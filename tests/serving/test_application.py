"""What Serve is told of an application: the same as Ray's own, without an engine being imported for it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray

from seatrial_serving.application import FullReplica, _bind
from seatrial_serving.spec import Spec

BUILT = """
import sys
import seatrial_serving.application
print([name for name in ("torch", "transformers", "vllm", "mlflow") if name in sys.modules])
"""


def test_nobody_but_a_replica_imports_an_engine() -> None:
    """Serve builds each application in a process of its own, before the first replica starts."""
    done = subprocess.run([sys.executable, "-c", BUILT], capture_output=True, text=True, timeout=120)
    assert (done.stdout.strip(), done.returncode) == ("[]", 0), done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("told", "own_cpus"),
    [
        ({"device": "cpu", "cpus": 2}, 0),  # its worker has them
        ({"device": "gpu", "cpus": 3}, 3),
        ({"device": "gpu", "cpus": 1, "tensor_parallel": 4}, 1),
    ],
)
def test_replicas_are_placed_as_ray_places_its_own(
    told: dict[str, Any], own_cpus: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ray.llm._internal.serve.core.server.llm_server import LLMServer

    from seatrial_serving.engine import _llm_config

    def context() -> SimpleNamespace:
        return SimpleNamespace(runtime_env={"working_dir": "gcs://code.zip", "env_vars": {"A": "1"}})

    monkeypatch.setattr(ray, "get_runtime_context", context)
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"GPU": 8.0})
    spec = Spec.model_validate({"service": {"name": "svc", "engine": {"base": "x", **told}}})
    ours = _bind(FullReplica, spec)._bound_deployment._replica_config
    config = _llm_config(spec, "svc", tmp_path, device=told["device"], lora=True)
    actor = {"ray_actor_options": {"num_cpus": own_cpus}}
    theirs = LLMServer.get_deployment_options(config.model_copy(update={"deployment_config": actor}))

    bundles = [{k: v for k, v in each.items() if v} for each in theirs["placement_group_bundles"]]
    assert ours.placement_group_bundles == bundles
    assert ours.placement_group_strategy == theirs["placement_group_strategy"]
    assert ours.ray_actor_options["num_cpus"] == theirs["ray_actor_options"]["num_cpus"]
    environment = theirs["ray_actor_options"]["runtime_env"]
    del environment["worker_process_setup_hook"]  # Ray's, which does nothing
    assert ours.ray_actor_options["runtime_env"] == environment
