"""From an alias that is set in MLflow to the first answer of the new version, on a stack of `seatrial up`.

    python -m benchmarks.alias_to_answer [--moves 10] [--replicas 1]

`champion` goes round four adapters of a tiny model, whose files the replicas have cached, and of which each
has at most the last two loaded. Measured from the start of the request that sets the alias, with MLflow's
hints and then, with the webhook deleted, by the poll alone, at the stack's own intervals. Prints one JSON
object; exit code 1 when a limit is missed.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx
import yaml
from mlflow import MlflowClient

from demo import stack
from seatrial.registry.versions import BaseRef
from tests.serving import stage
from tests.serving.load import PROMPT

SERVICE, BASE, VERSIONS = "swift", "swift-base", 4
LIMIT_S = {"hint": 3.0, "poll": 15.0}
ENGINE = {
    "base": f"models:/{BASE}/1",
    "device": "cpu",
    "dtype": "float32",
    "enforce_eager": True,
    "kv_cache_gib": 0.25,
    "max_lora_rank": 8,
    "max_model_len": 256,
}


def main() -> None:
    """Start the stack, measure, print, take everything back."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--moves", type=int, default=10)
    parser.add_argument("--replicas", type=int, default=1)
    options = parser.parse_args()
    stack.POLL_S = "2.0"  # the default; the demo itself looks more often
    with tempfile.TemporaryDirectory(prefix="seatrial-alias-") as name:
        work = Path(name)
        try:
            figures = _measure(stack.up(work), options.moves, options.replicas)
        finally:
            stack.down(work)
    print(json.dumps({"benchmark": "alias_to_answer", "replicas": options.replicas, **figures}))
    sys.exit(0 if all(figures[f"{mode}_slowest_s"] <= limit_s for mode, limit_s in LIMIT_S.items()) else 1)


def _measure(running: stack.Stack, moves: int, replicas: int) -> dict[str, Any]:
    made = _versions(running)
    client = MlflowClient(running.mlflow, running.mlflow)
    client.set_registered_model_alias(SERVICE, "champion", made[0])
    engine = {**ENGINE, "replicas": replicas}
    keys = [{"name": "test", "sha256": stage.KEY_SHA256}]
    config = {"name": SERVICE, "engine": engine, "http": {"keys": keys}}
    (running.work / "service.yaml").write_text(yaml.safe_dump(config))
    running.run(stack.tool("seatrial"), "deploy", "service.yaml")
    stage.wait_until(lambda: _answered_by(running) == made[0], 60, "the champion")
    for version in [*made[1:], made[0]]:  # every replica has every version's files from now on
        _move(running, client, version, rest_s=1.0)
    figures: dict[str, Any] = {"moves": moves}
    for mode in LIMIT_S:
        if mode == "poll":
            for webhook in client.list_webhooks():
                client.delete_webhook(webhook.webhook_id)
        took = sorted(_move(running, client, made[(index + 1) % VERSIONS]) for index in range(moves))
        figures |= {
            f"{mode}_median_s": round(statistics.median(took), 2),
            f"{mode}_slowest_s": round(took[-1], 2),
        }
        client.set_registered_model_alias(SERVICE, "champion", made[0])
        stage.wait_until(lambda: _answered_by(running) == made[0], 60, "the first version")
    return figures | {f"{mode}_limit_s": limit_s for mode, limit_s in LIMIT_S.items()}


def _versions(running: stack.Stack) -> list[str]:
    base = stage.make_base(running.work / "base")
    _, digest = stage.register(running.mlflow, BASE, base, kind="full", method="full")
    ref = BaseRef(ref=f"models:/{BASE}/1", digest=digest)
    made = []
    for seed in range(VERSIONS):
        folder = stage.make_adapter(base, running.work / f"adapter{seed}", seed=seed + 1)
        kind = {"kind": "adapter", "method": "lora", "base": ref, "rank": 8}
        made.append(stage.register(running.mlflow, SERVICE, folder, **kind)[0])
    return made


def _move(running: stack.Stack, client: MlflowClient, version: str, rest_s: float = 11.0) -> float:
    """Seconds from the start of the alias' move to the end of the first answer by ``version``.

    ``rest_s`` lets the loop come to rest; some more leave it anywhere between two polls.
    """
    time.sleep(rest_s + random.uniform(0.0, 2.0))  # noqa: S311
    began = time.monotonic()
    client.set_registered_model_alias(SERVICE, "champion", version)
    stage.wait_until(lambda: _answered_by(running) == version, 60, f"version {version}", every_s=0.02)
    return time.monotonic() - began


def _answered_by(running: stack.Stack) -> str | None:
    body = {"model": SERVICE, "messages": PROMPT, "max_tokens": 1}
    headers = {"Authorization": f"Bearer {stage.KEY}"}
    answer = httpx.post(f"{running.service}/v1/chat/completions", json=body, headers=headers, timeout=60)
    return answer.headers.get("x-seatrial-version") if answer.status_code == 200 else None


if __name__ == "__main__":
    main()
