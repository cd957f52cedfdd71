"""Verdicts: their order, what never promotes, and how often they are wrong under continuous looks."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from seatrial.config.trial import TrialSection
from seatrial.experiments.evidence import ArmEvidence, Evidence
from seatrial.experiments.sequential import ArmStats
from seatrial.experiments.verdict import Judgement, TrialPolicy, judge

SHARES = {"champion": 0.5, "challenger": 0.5}


def policy(**values) -> TrialPolicy:
    return TrialPolicy.from_json(TrialSection.model_validate(values).model_dump(mode="json"))


def arm(name: str, n: int, wins: float, *, failures: int = 0, outcomes: int | None = None) -> ArmEvidence:
    seen = n if outcomes is None else outcomes
    return ArmEvidence(name, name, n, n, n + failures, n, failures, 0, seen, ArmStats(n, wins, wins))


def look(a: ArmEvidence, b: ArmEvidence, rules: TrialPolicy, age_s: float = 10.0) -> Judgement:
    return judge(rules, SHARES, 0.0, Evidence(age_s, (a, b)), age_s)


A, B = arm("champion", 400, 120), arm("challenger", 400, 240)


def test_a_clear_lift_promotes_and_its_mirror_rolls_back():
    assert look(A, B, policy()).verdict == "promote"
    worse = look(arm("champion", 400, 240), arm("challenger", 400, 120), policy())
    assert worse.verdict == "roll_back"
    assert "worse" in worse.reason


def test_where_less_is_better_the_signs_turn():
    rules = policy(metric={"name": "complaint", "higher_is_better": False})
    assert look(A, B, rules).verdict == "roll_back"
    assert look(arm("champion", 400, 240), arm("challenger", 400, 120), rules).verdict == "promote"


def test_the_sample_ratio_comes_before_everything():
    found = look(
        arm("champion", 400, 120), replace(B, assigned_units=250, failures=200, requests=450), policy()
    )
    assert found.verdict == "invalid"
    assert "do not fit the split" in found.reason


def test_the_guardrail_comes_before_the_minimum_and_the_metric():
    found = look(arm("champion", 10, 3), arm("challenger", 10, 9, failures=20), policy())
    assert found.verdict == "roll_back"
    assert "max_error_share" in found.reason


def test_failures_of_the_champion_do_not_roll_the_challenger_back():
    assert look(arm("champion", 10, 3, failures=20), arm("challenger", 10, 9), policy()).verdict is None


def test_the_minimum_comes_before_the_metric():
    found = look(arm("champion", 90, 9), arm("challenger", 90, 81), policy(minimum_units=200))
    assert (found.verdict, found.reason) == (None, "180 of 200 units")
    early = look(A, B, policy(minimum_duration_s=60))
    assert early.verdict is None
    assert look(A, B, policy(minimum_duration_s=60), age_s=61).verdict == "promote"


def test_the_deadline_ends_what_is_undecided_and_only_that():
    same = arm("champion", 400, 120), arm("challenger", 400, 124)
    assert look(*same, policy(deadline_h=1)).verdict is None
    ended = look(*same, policy(deadline_h=1), age_s=3601)
    assert ended.verdict == "inconclusive"
    assert "still holds zero" in ended.reason
    assert look(A, B, policy(deadline_h=1), age_s=3601).verdict == "promote"
    nobody = ArmEvidence.empty("champion", "1"), ArmEvidence.empty("challenger", "2")
    assert look(*nobody, policy(deadline_h=1), age_s=3601).verdict == "inconclusive"


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("field", ["total", "total_squares"])
@pytest.mark.parametrize("kind", ["proportion", "mean"])
def test_a_number_that_is_none_never_decides(value, field, kind):
    broken = replace(B, stats=replace(B.stats, **{field: value}))
    for pair in ((A, broken), (replace(broken, name="champion"), replace(A, name="challenger"))):
        assert look(*pair, policy(metric={"type": kind})).verdict is None


def test_missing_outcomes_never_promote():
    silent = replace(arm("challenger", 400, 0), outcomes=0)
    rules = policy(metric={"name": "complaint", "higher_is_better": False})
    found = look(arm("champion", 400, 120), silent, rules)
    assert (found.verdict, found.reason) == (None, "no outcome complaint in the challenger arm")
    assert (
        look(arm("champion", 400, 0, outcomes=0), arm("challenger", 400, 0, outcomes=0), policy()).verdict
        is None
    )
    without = replace(B, stats=ArmStats(0, 0.0, 0.0), outcomes=0)
    assert look(A, without, policy(metric={"missing": "exclude"})).verdict is None


def test_a_champion_that_never_answers_well_can_be_beaten():
    found = look(arm("champion", 400, 0), arm("challenger", 400, 120), policy())
    assert found.verdict == "promote"
    assert not found.lift.is_defined


def test_a_judgement_survives_json():
    for pair in ((A, B), (arm("champion", 0, 0), B)):
        found = look(*pair, policy())
        again = Judgement.from_json(found.to_json())
        assert again.to_json() == found.to_json()
    evidence = Evidence(1.0, (A, replace(B, stats=ArmStats(1, math.nan, 1.0))), 3)
    assert Evidence.from_json(evidence.to_json()).to_json() == evidence.to_json()


def run_trials(rate_a: float, rate_b: float, trials: int, units: int, rules: TrialPolicy) -> list[str | None]:
    """Verdict of each trial, looked at after every 20 units. The order of units is the assignment's."""
    random = np.random.default_rng(2024)
    verdicts: list[str | None] = []
    for _ in range(trials):
        in_b = random.random(units) < 0.5
        hits = random.random(units) < np.where(in_b, rate_b, rate_a)
        n_b, wins_b = np.cumsum(in_b), np.cumsum(hits & in_b)
        n_a, wins_a = np.cumsum(~in_b), np.cumsum(hits & ~in_b)
        found = None
        for n in range(rules.minimum_units - 1, units, 20):
            a = arm("champion", int(n_a[n]), int(wins_a[n]))
            b = arm("challenger", int(n_b[n]), int(wins_b[n]))
            found = look(a, b, rules).verdict
            if found is not None:
                break
        verdicts.append(found)
    return verdicts


def test_equal_versions_are_rarely_told_apart_however_often_one_looks():
    trials = 300
    verdicts = run_trials(0.3, 0.3, trials, 1000, policy(minimum_units=100))
    wrong = sum(verdict in ("promote", "roll_back") for verdict in verdicts)
    assert wrong / trials <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / trials)
    assert sum(verdict == "invalid" for verdict in verdicts) <= 3


def test_a_real_lift_is_found():
    verdicts = run_trials(0.3, 0.5, 60, 1000, policy(minimum_units=100))
    assert sum(verdict == "promote" for verdict in verdicts) >= 55
    assert "roll_back" not in verdicts
