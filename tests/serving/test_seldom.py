"""A line for every request is a line now and then."""

from __future__ import annotations

import logging

import pytest

from seatrial_serving.seldom import MOST_KEYS, Seldom
from tests.serving.front import ask, service
from tests.serving.test_table import TRAFFIC


def test_the_first_is_due_at_once_and_the_next_when_the_time_is_over() -> None:
    now = 100.0
    seldom = Seldom(10.0, lambda: now)
    assert [seldom.due("7") for _ in range(4)] == [1, 0, 0, 0]
    assert seldom.due("8") == 1
    now = 110.0
    assert [seldom.due("7"), seldom.due("7"), seldom.due("8")] == [4, 0, 1]
    for key in range(3 * MOST_KEYS):
        assert seldom.due(f"v{key}") == 1
    assert len(seldom._due) <= MOST_KEYS


async def test_a_version_that_cannot_answer_is_told_once_for_many_requests(
    caplog: pytest.LogCaptureFixture,
) -> None:
    everyone = {**TRAFFIC["trial"], "arms": [{"name": "challenger", "version": "7", "weight": 1.0}]}
    app, shelf, _ = service(ready={"6": None, "7": "svc--v7"}, traffic={**TRAFFIC, "trial": everyone})
    with caplog.at_level(logging.WARNING, "seatrial_serving.traffic"):
        for index in range(20):
            assert (await ask(app, user=f"u{index}")).status_code == 200
    assert [row["fallback"] for row in shelf.rows] == [True] * 20
    assert [record.getMessage() for record in caplog.records] == [
        "version 7 cannot answer (svc--v7 is down): falling back to version 6, "
        "1 request since the last such line"
    ]
