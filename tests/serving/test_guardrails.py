"""A guardrail from the recorder to the verdict: rows, store, evidence and judge are the real ones."""

from __future__ import annotations

import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from seatrial.config.trial import TrialSection
from seatrial.experiments.assignment import Arm, TrialTable, assign
from seatrial.experiments.judgement import Judgement
from seatrial.experiments.trial import Trial, look_at
from seatrial.store import Store, outcome_row
from seatrial_serving.recorder import Recorder
from tests.serving.recording import exposure

USERS, EVERY = 480, 60
FAILED = {"status": 500, "error": "boom", "ttft_s": None, "latency_s": None}
PRICES = {"prompt": 1.0, "completion": 4.0}

# Name → the guardrail, and what a request of a version that breaks it is like, with which share.
CASES: Mapping[str, tuple[Mapping[str, Any], Mapping[str, Any], float]] = {
    "refusals": ({"metric": {"name": "refusals"}, "limit": 0.15}, {"refused": True}, 0.5),
    "refusals beside the champion's": (
        {"metric": {"name": "refusals"}, "margin": 0.5},
        {"refused": True},
        0.5,
    ),
    "cost": (
        {"metric": {"name": "cost", "type": "mean"}, "limit": 0.001},
        {"prompt_tokens": 400, "completion_tokens": 900},
        1.0,
    ),
    "cost beside the champion's": (
        {"metric": {"name": "cost", "type": "mean"}, "margin": 0.2},
        {"completion_tokens": 400},
        1.0,
    ),
    "errors": ({"metric": {"name": "errors"}, "limit": 0.1}, FAILED, 0.4),
    "latency_s": (
        {"metric": {"name": "latency_s", "type": "quantile", "quantile": 0.95}, "limit": 2.0},
        {"latency_s": 3.0},
        0.3,
    ),
    "ttft_s": (
        {"metric": {"name": "ttft_s", "type": "quantile", "quantile": 0.95}, "margin": 1.0},
        {"ttft_s": 0.9},
        0.5,
    ),
    "max_error_share": ({}, FAILED, 0.6),
}


@pytest.mark.parametrize("case", CASES)
async def test_a_challenger_that_breaks_it_is_rolled_back_and_one_that_keeps_it_goes_on(
    case: str, tmp_path: Path, store: Store
) -> None:
    guardrail, bad, share = CASES[case]
    name = case.split()[0]
    looks = await judged(store, tmp_path / "bad", trial(1, guardrail), bad, share)
    assert looks[-1].verdict == "roll_back", looks[-1].reason
    assert looks[-1].reason.startswith("guardrail: challenger: ")
    assert name in looks[-1].reason
    assert len(looks) < USERS // EVERY, "before the end"

    looks = await judged(store, tmp_path / "good", trial(2, guardrail), bad, 0.0)
    assert len(looks) == USERS // EVERY
    assert {each.verdict for each in looks} == {None}
    (kept,) = (each for each in looks[-1].arms["challenger"].guardrails if each.name == name)
    assert not kept.breached
    assert kept.p > 0.05


def trial(number: int, guardrail: Mapping[str, Any]) -> Trial:
    section = {
        "guardrails": [guardrail] if guardrail else [],
        "prices": PRICES,
        "max_error_share": 0.9 if guardrail else 0.1,
        "minimum_units": 10 * USERS,  # the metric has nothing to say yet
    }
    policy = TrialSection.model_validate(section).model_dump(mode="json")
    arms = (Arm("champion", "1", 0.5), Arm("challenger", "2", 0.5))
    table = TrialTable(f"svc-{number}", f"seed-{number}", 1.0, arms)
    return Trial(table.id, "svc", number, "open", table, policy, "1", {"challenger": "2"}, 0.0, 0.0)


async def judged(
    store: Store, spool: Path, made: Trial, bad: Mapping[str, Any], share: float
) -> list[Judgement]:
    """Looks at a trial as users come in, up to one that ends it; ``share`` of the challenger's are bad."""
    store.open_trial(made)
    recorder, draw = Recorder(spool, lambda: store), random.Random(made.id)  # noqa: S311  # values, no secret
    looks: list[Judgement] = []
    told: list[dict[str, Any]] = []
    for number in range(1, USERS + 1):
        arm = assign(f"u{number}", made.table)
        assert arm is not None
        is_bad = arm.name == "challenger" and draw.random() < share
        row = {**usual(draw), **(bad if is_bad else {})}
        request = f"{made.id}-r{number}"
        versions = {"assigned_version": arm.version, "served_version": arm.version}
        about = {"request_id": request, "trial_id": made.id, "arm": arm.name, "at": float(number)}
        recorder.exposed(exposure(number, **about, **versions, **row))
        told.append(outcome_row("svc", request, "resolved", float(draw.random() < 0.5), now=number))
        if number % EVERY == 0:
            await recorder.outcomes(told)
            told.clear()
            while not recorder.flush():
                pass
            looks.append(look_at(made, store.evidence(made, now=float(number)), float(number)))
            if looks[-1].verdict is not None:
                break
    recorder.close()
    return looks


def usual(draw: random.Random) -> dict[str, Any]:
    """What a request of either version is like: a few are refused, slow or long."""
    return {
        "refused": draw.random() < 0.02,
        "prompt_tokens": draw.randint(50, 150),
        "completion_tokens": draw.randint(50, 150),
        "latency_s": draw.uniform(0.2, 1.8),
        "ttft_s": draw.uniform(0.05, 0.3),
    }
