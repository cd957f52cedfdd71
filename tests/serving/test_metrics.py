"""Labels have few values."""

from __future__ import annotations

from seatrial_serving.metrics import MOST_VERSIONS, OTHER, bounded
from tests.serving.front import ask, service, streaming


def test_a_process_names_so_many_versions_and_no_more() -> None:
    known: set[str] = set()
    named = [bounded(str(version), known) for version in range(200)]
    assert named == [str(version) for version in range(MOST_VERSIONS)] + [OTHER] * (200 - MOST_VERSIONS)
    assert bounded("3", known) == "3"


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
