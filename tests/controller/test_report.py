"""What a report says of guardrails."""

from __future__ import annotations

from dataclasses import replace

from seatrial.controller.report import report
from seatrial.experiments.evidence import ArmEvidence, Evidence, Moments
from seatrial.experiments.guardrails import SAME, TOO_FEW
from tests.store.rows import trial


def test_a_guardrail_that_says_nothing_says_why() -> None:
    prices = {"prompt": 1.0, "completion": 1.0}
    made = trial(guardrails=[{"metric": {"name": "cost", "type": "mean"}, "margin": 0.1}], prices=prices)

    def silent(n: int, ours: float, theirs: float) -> str | None:
        arms = (
            replace(ArmEvidence.empty(name, "1"), metrics={"cost": Moments(n, n * value, n * value**2)})
            for name, value in (("champion", ours), ("challenger", theirs))
        )
        found = report(made, None, Evidence(20.0, tuple(arms)), 20.0)
        rails = {rail["name"]: rail for rail in found["arms"][1]["guardrails"]}
        assert rails["max_error_share"]["silent"] is None
        assert not rails["cost"]["breached"]
        words: str | None = rails["cost"]["silent"]
        return words

    assert silent(19, 1.0, 2.0) == TOO_FEW
    assert silent(50, 1.0, 2.0) == SAME
    assert silent(50, 1.0, 1.0) is None
