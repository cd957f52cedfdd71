"""What Serve is told of an application: the same as Ray's own, without an engine being imported for it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from seatrial.config.service import EngineSection
from seatrial_serving.spec import Spec, bundles, replica_cpus

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
    "told",
    [
        {"device": "cpu", "cpus": 2},
        {"device": "gpu", "cpus": 3},
        {"device": "gpu", "cpus": 1, "tensor_parallel": 4},
    ],
)
def test_replicas_are_placed_as_ray_places_its_own(told: dict[str, Any], tmp_path: Path) -> None:
    from ray.llm._internal.serve.core.server.llm_server import LLMServer

    from seatrial_serving.engine import _llm_config

    engine = {"base": "x", **told}
    spec = Spec.model_validate({"service": {"name": "svc", "engine": engine}})
    device = told["device"]
    config = _llm_config(spec, "svc", tmp_path, device=device, lora=True)
    theirs = LLMServer.get_deployment_options(config)
    ours = bundles(spec.service.engine, device=device)
    assert ours == [{k: v for k, v in each.items() if v} for each in theirs["placement_group_bundles"]]
    assert theirs["placement_group_strategy"] == "STRICT_PACK"
    cpus = replica_cpus(EngineSection.model_validate(engine), device=device)
    assert theirs["ray_actor_options"]["num_cpus"] == cpus
