"""What a replica says of its engine's death, to Serve's controller, which has no part of an engine."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import RayTaskError

READ = """
import sys
from ray.exceptions import RayError
error = RayError.from_bytes(sys.stdin.buffer.read()).as_instanceof_cause()
assert isinstance(error, RuntimeError), type(error)
print([name for name in ("torch", "vllm") if name in sys.modules], str(error.cause))
"""


def replica_with(engine: object) -> Any:
    """A replica that was never started."""
    from seatrial_serving.engine import FullEngine

    replica = FullEngine.__new__(FullEngine)
    replica.engine = engine  # type: ignore[assignment]
    return replica


async def test_the_death_of_an_engine_is_told_without_loading_one() -> None:
    from vllm.v1.engine.exceptions import EngineDeadError

    async def dead() -> None:
        raise EngineDeadError

    replica = replica_with(SimpleNamespace(check_health=dead))
    with pytest.raises(RuntimeError, match="the engine is not well: EngineDeadError: ") as caught:
        await replica.check_health()
    sent = RayTaskError("check_health", "Traceback", caught.value).to_bytes()
    read = subprocess.run([sys.executable, "-c", READ], input=sent, capture_output=True, timeout=60)
    assert read.stdout.decode().startswith("[] the engine is not well: "), read.stderr.decode()


async def test_an_engine_that_is_well_or_not_there_yet_is_no_trouble() -> None:
    async def well() -> None:
        return None

    for engine in (None, SimpleNamespace(check_health=well)):
        await replica_with(engine).check_health()
