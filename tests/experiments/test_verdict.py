"""Verdicts: their order, what never promotes, and how often they are wrong under continuous looks."""

from __future__ import annotations

import math
from collections.abc import Callable
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
    stats = ArmStats(n, wins, wins)
    unanswered = n * failures / (n + failures) if failures else 0.0
    return ArmEvidence(name, name, n, n, n + failures, n, failures, 0, seen, stats, unanswered)


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


def test_users_who_leave_one_arm_more_often_make_the_trial_invalid():
    # The hardest 1,000 of 5,000 users had no answer: of those that are left more were helped.
    a, b = arm("champion", 5000, 1500), replace(arm("challenger", 4000, 1500), assigned_units=5000)
    assert look(a, b, policy()).verdict == "promote"
    found = look(a, replace(b, lost_units=1000), policy())
    assert found.verdict == "invalid"
    assert found.reason.startswith("sample ratio: 0 and 1000 of 5000 and 5000 units left without an answer")
    assert found.srm_p == 1.0
    alike = look(replace(a, assigned_units=6250, lost_units=1250), replace(b, lost_units=1000), policy())
    assert alike.verdict == "invalid", "of all units there are too few"


def test_a_challenger_that_never_answers_ends_the_trial_without_any_failure():
    def after(units: int) -> Judgement:
        hung = replace(arm("challenger", 0, 0), assigned_units=units, lost_units=units)
        return look(arm("champion", units, units // 3), hung, policy())

    assert after(5).verdict is None
    assert after(30).verdict == "invalid"


def test_users_who_leave_both_arms_alike_and_failures_are_no_mismatch():
    a, b = (replace(arm(name, 4000, 1500), assigned_units=5000, lost_units=1000) for name in SHARES)
    assert look(a, b, policy()).verdict is None
    failing = replace(arm("challenger", 4000, 1500), assigned_units=5000, failures=1000, unanswered=1000.0)
    found = look(arm("champion", 5000, 1500), failing, policy())
    assert (found.verdict, "max_error_share" in found.reason) == ("roll_back", True)
    both = look(arm("champion", 5000, 1500), replace(failing, lost_units=1000), policy())
    assert both.verdict == "roll_back", "a guardrail says more"


def test_the_guardrail_comes_before_the_minimum_and_the_metric():
    found = look(arm("champion", 10, 3), arm("challenger", 10, 9, failures=20), policy())
    assert found.verdict == "roll_back"
    assert "max_error_share" in found.reason


def test_answers_of_the_champion_in_the_challengers_place_count_against_the_challenger():
    fallen = replace(B, fallbacks=400, unanswered=400.0)
    found = look(A, fallen, policy())
    assert found.verdict == "roll_back"
    assert "400 fell back" in found.reason


def test_one_users_retries_do_not_end_a_trial():
    retried = replace(arm("challenger", 1, 0), requests=9, failures=9, unanswered=1.0)
    assert look(arm("champion", 1, 0), retried, policy()).verdict is None


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


@pytest.mark.parametrize("mute", ["champion", "challenger"])
def test_an_arm_whose_outcomes_do_not_arrive_never_gives_a_promotion(mute):
    arms = {"champion": A, "challenger": B} | {mute: arm(mute, 400, 0, outcomes=0)}
    for higher in (True, False):
        rules = policy(metric={"higher_is_better": higher})
        assert look(arms["champion"], arms["challenger"], rules).verdict != "promote"


def test_a_handful_of_values_decides_nothing():
    few = replace(B, stats=ArmStats(19, 19.0, 19.0))
    found = look(A, few, policy(metric={"missing": "exclude"}))
    assert (found.verdict, found.reason) == (None, "19 of 20 units with a value in the challenger arm")


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


Values = Callable[[np.random.Generator, tuple[int, int]], np.ndarray]


def rare(rate: float) -> Values:
    return lambda random, shape: (random.random(shape) < rate).astype(float)


def two_requests(rate: float) -> Values:
    return lambda random, shape: (rare(rate)(random, shape) + rare(rate)(random, shape)) / 2


def skewed(sigma: float) -> Values:
    return lambda random, shape: np.exp(sigma * random.standard_normal(shape))


def run_trials(
    control: Values, treatment: Values, rules: TrialPolicy, *, share: float = 0.5, trials: int, units: int
) -> list[str | None]:
    """Verdict of each trial, looked at after every 20 units. The order of units is the assignment's."""
    random = np.random.default_rng(2024)
    in_b = random.random((trials, units)) < share
    values = np.where(in_b, treatment(random, in_b.shape), control(random, in_b.shape))
    sums = {
        name: [np.cumsum(mask * power, axis=1) for power in (np.ones_like(values), values, values**2)]
        for name, mask in (("champion", ~in_b), ("challenger", in_b))
    }
    shares = {"champion": 1 - share, "challenger": share}

    def at(trial: int, n: int) -> str | None:
        arms = []
        for name, parts in sums.items():
            count, total, squares = (float(part[trial, n]) for part in parts)
            arms.append(replace(arm(name, int(count), 0), stats=ArmStats(int(count), total, squares)))
        return judge(rules, shares, 0.0, Evidence(1.0, tuple(arms)), 1.0).verdict

    looks = range(rules.minimum_units - 1, units, 20)
    return [next(filter(None, (at(trial, n) for n in looks)), None) for trial in range(trials)]


@pytest.mark.parametrize(
    ("values", "share", "kind"),
    [
        (rare(0.3), 0.5, "proportion"),
        (rare(0.05), 0.9, "proportion"),
        (rare(0.02), 0.05, "mean"),
        (two_requests(0.05), 0.05, "proportion"),
        (skewed(1.5), 0.1, "mean"),
        (skewed(1.0), 0.02, "mean"),
    ],
)
def test_equal_versions_are_rarely_told_apart_however_often_one_looks(values, share, kind):
    trials, rules = 200, policy(metric={"type": kind})
    verdicts = run_trials(values, values, rules, share=share, trials=trials, units=1000)
    wrong = sum(verdict in ("promote", "roll_back") for verdict in verdicts)
    assert wrong / trials <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / trials)
    assert sum(verdict == "invalid" for verdict in verdicts) <= 3


def test_without_the_prior_units_a_small_arm_is_often_told_apart_from_its_equal(monkeypatch):
    """The reason for them; with this test's seed and looks about half the trials went wrong."""
    monkeypatch.setattr("seatrial.experiments.metrics.PRIOR_UNITS", 0.0)
    verdicts = run_trials(
        rare(0.02), rare(0.02), policy(metric={"type": "mean"}), share=0.05, trials=100, units=1000
    )
    assert sum(verdict in ("promote", "roll_back") for verdict in verdicts) > 30


def test_a_real_lift_is_found():
    verdicts = run_trials(rare(0.3), rare(0.5), policy(minimum_units=100), trials=60, units=1000)
    assert sum(verdict == "promote" for verdict in verdicts) >= 55
    assert "roll_back" not in verdicts
