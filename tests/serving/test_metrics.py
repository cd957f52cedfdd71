"""Labels have few values."""

from __future__ import annotations

import asyncio
from functools import partial
from pathlib import Path

from seatrial.store import Store
from seatrial.store.writer import outcome_row
from seatrial_serving.metrics import MOST_VERSIONS, OTHER, bounded, count_outcomes
from seatrial_serving.recorder import Recorder
from tests.serving.front import ask, service, streaming


def test_a_process_names_so_many_versions_and_no_more() -> None:
    known: set[str] = set()
    named = [bounded(str(version), known) for version in range(200)]
    assert named == [str(version) for version in range(MOST_VERSIONS)] + [OTHER] * (200 - MOST_VERSIONS)
    assert bounded("3", known) == "3"


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
