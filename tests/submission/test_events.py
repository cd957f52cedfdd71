"""What a job prints cannot hurt those who read it."""

from __future__ import annotations

import pytest

from seatrial.submission.events import Event, parse

BEGIN = "::seatrial:: "


@pytest.mark.parametrize(
    "payload",
    ["[1]", "1", "null", '"x"', "{", "{}", '{"event": 1}', '{"event": null}', "[" * 100_000, "9" * 5000],
)
def test_what_is_no_event_is_a_line(payload: str) -> None:
    assert parse(BEGIN + payload) == BEGIN + payload


def test_an_event_is_found_behind_a_prefix_of_ray() -> None:
    found = parse(f'(driver pid=7) {BEGIN}{{"event": "run", "url": "http://m/1"}}')
    assert found == Event("run", {"url": "http://m/1"})


@pytest.mark.parametrize("value", ["NaN", "Infinity", "1" * 400, "true", '"5"', "null"])
def test_a_number_is_finite_or_none(value: str) -> None:
    found = parse(f'{BEGIN}{{"event": "progress", "step": {value}}}')
    assert isinstance(found, Event)
    assert found.number("step") is None


def test_a_text_moves_no_terminal() -> None:
    found = parse(f'{BEGIN}{{"event": "run", "url": "http://m/\\u001b]0;x\\u0007\\u00001"}}')
    assert isinstance(found, Event)
    assert found.text("url") == "http://m/1"
