"""Labels have few values."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from ray.util import metrics as ray_metrics

from seatrial.store import Store
from seatrial.store.writer import outcome_row
from seatrial_serving.metrics import (
    ALWAYS,
    MOST_ARMS,
    MOST_VERSIONS,
    OTHER,
    RayMeter,
    Sample,
    bounded,
    count_outcomes,
)
from seatrial_serving.recorder import Recorder
from tests.serving.front import ask, service, streaming


def test_a_process_names_so_many_versions_and_arms_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    written: dict[str, list[dict[str, str]]] = defaultdict(list)

    class Written:
        """Stands for Ray's exporter, which takes any label."""

        def __init__(self, name: str, *_: Any) -> None:
            self.name = name

        def inc(self, _: float, tags: dict[str, str]) -> None:
            written[self.name].append(tags)

        observe = inc

    for kind in ("Counter", "Histogram"):
        monkeypatch.setattr(ray_metrics, kind, Written)
    meter = RayMeter("svc")
    for number in range(200):
        meter.answered(Sample(f"challenger-x{number}", str(number), 200 + number, 0.1))
        meter.judged(f"challenger-y{number}", f"v{number}", 1)
        meter.shadowed(f"w{number}", "same")
    for arm in ALWAYS:
        meter.judged(arm, "0", 1)
    meter.judged("challenger-x0", "0", 1)
    every = [tags for found in written.values() for tags in found]
    arms, versions = ({tags[name] for tags in every} for name in ("arm", "version"))
    assert (len(arms), len(versions)) == (MOST_ARMS, MOST_VERSIONS)
    assert {*ALWAYS, "challenger-x0"} < arms
    assert {tags["service"] for tags in every} == {"svc"}
    assert {tags["status"] for tags in written["seatrial_requests"]} == {"2xx", "3xx"}
    assert written["seatrial_outcomes"][-1]["arm"] == "challenger-x0"
    assert written["seatrial_outcomes"][-2]["arm"] == "challenger"


def test_what_is_known_stays_known_when_there_is_no_more_room() -> None:
    known: set[str] = set()
    assert [bounded(each, known, 2) for each in ("a", "b", "c", "a")] == ["a", "b", OTHER, "a"]


def test_outcomes_are_counted_for_the_arm_that_answered(tmp_path: Path) -> None:
    store = Store(f"sqlite:///{tmp_path / 'store.db'}")
    store.migrate()
    row = {"trial_id": "svc-3", "service": "svc", "sticky": True, "fallback": False, "status": 200, "at": 1.0}
    for request, arm, version in (("r1", "champion", "6"), ("r2", "challenger", "7")):
        versions = {"assigned_version": version, "served_version": version}
        store.add_exposures([{**row, **versions, "request_id": request, "unit": request, "arm": arm}])
    _, shelf, _ = service()
    recorder = Recorder(tmp_path / "spool", lambda: store, on_outcomes=partial(count_outcomes, shelf))
    rows = [outcome_row("svc", request, "ok", 1.0, now=2.0) for request in ("r1", "r2", "r3")]
    rows += [
        outcome_row("svc", "r2", "thumbs", 1.0, now=2.0),
        outcome_row("svc", None, "ok", 1.0, now=2.0, unit="u"),
    ]
    asyncio.run(recorder.outcomes(rows))
    recorder.flush()
    recorder.close()
    store.close()
    assert sorted(shelf.judgements) == [("challenger", "7", 2), ("champion", "6", 1), ("none", "other", 2)]


async def test_each_routed_request_is_counted_once_for_its_arm() -> None:
    app, shelf, _ = service(ready={"6": None})
    for index in range(20):
        await ask(app, user=f"u{index}")
    await ask(app, model="svc@6")
    await ask(app, n=99)
    arms = [sample.arm for sample in shelf.samples]
    assert len(arms) == 21, "a request that was refused before it had a version is nobody's"
    assert set(arms) == {"champion", "challenger", "none"}
    for sample in shelf.samples:
        assert (sample.version, sample.status) == ("6", 200)
        assert sample.is_fallback == (sample.arm == "challenger")
        assert sample.completion_tokens == 5


async def test_a_streams_tokens_are_counted_though_its_client_did_not_ask_for_them() -> None:
    usage = b'data: {"choices":[],"usage":{"prompt_tokens":4,"completion_tokens":3}}\n\n'
    app, shelf, _ = service(streaming(b"data: a\n\n", usage, b"data: [DONE]\n\n"))
    unasked = await ask(app, stream=True)
    assert unasked.content == b"data: a\n\ndata: [DONE]\n\n"
    asked = await ask(app, stream=True, stream_options={"include_usage": True})
    assert asked.content == b"data: a\n\n" + usage + b"data: [DONE]\n\n"
    assert [(s.prompt_tokens, s.completion_tokens) for s in shelf.samples] == [(4, 3), (4, 3)]


async def test_what_no_version_has_seen_is_counted_by_its_reason() -> None:
    app, shelf, live = service()
    await ask(app, n=99)
    live.admitted = 4
    assert (await ask(app)).status_code == 429
    assert shelf.rejections == ["invalid_value", "overloaded"]
    assert shelf.samples == []
