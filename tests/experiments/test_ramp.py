"""How much of the traffic a trial takes."""

from __future__ import annotations

import pytest

from seatrial.experiments.evidence import ArmEvidence, Evidence
from seatrial.experiments.ramp import FEWEST_UNITS, coverages, next_coverage
from seatrial.experiments.sequential import ArmStats

POLICY = {"coverage": 1.0, "challenger_share": 0.5, "ramp": {"steps": [0.01, 0.05, 0.5], "hold_s": 60.0}}


def seen(units):
    arms = (
        ArmEvidence(name, "1", units, units, units, units, 0, 0, 0, ArmStats(units, 0.0, 0.0))
        for name in ("champion", "challenger")
    )
    return Evidence(0.0, tuple(arms))


def test_steps_are_the_challengers_share_of_all_traffic():
    assert coverages(POLICY) == pytest.approx((0.02, 0.1, 1.0))
    assert coverages({**POLICY, "coverage": 0.5}) == pytest.approx((0.02, 0.1, 0.5))
    assert coverages({**POLICY, "ramp": None}) == (1.0,)


@pytest.mark.parametrize(("coverage", "held_s", "units", "expected"), [
    (0.02, 60.0, FEWEST_UNITS, 0.1),
    (0.02, 59.9, FEWEST_UNITS, None),
    (0.02, 600.0, FEWEST_UNITS - 1, None),
    (0.1, 60.0, FEWEST_UNITS, 1.0),
    (1.0, 60.0, FEWEST_UNITS, None),
])  # fmt: skip
def test_a_step_is_held_and_wants_evidence(coverage, held_s, units, expected):
    assert next_coverage(POLICY, coverage, 1000.0, seen(units), 1000.0 + held_s) == expected
