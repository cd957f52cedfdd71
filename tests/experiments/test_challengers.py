"""Trials of several challengers, of planned looks and for reward; what never promotes; old records."""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from seatrial.config.trial import MEASURES, TrialSection
from seatrial.experiments.assignment import Arm, TrialTable, assign, bucket
from seatrial.experiments.evidence import ArmEvidence, Evidence, Moments
from seatrial.experiments.judgement import Judgement
from seatrial.experiments.policy import BUILT_IN, TrialPolicy
from seatrial.experiments.sequential import ArmStats
from seatrial.experiments.trial import Decision, Trial, look_at
from seatrial.experiments.verdict import STALE_S, judge
from tests.experiments.simulation import Case, run, share_of, with_history

THREE = {"champion": 0.5, "challenger": 0.25, "challenger-b": 0.25}
TWO = {"champion": 0.5, "challenger": 0.5}


def policy(**values) -> TrialPolicy:
    return TrialPolicy.from_json(TrialSection.model_validate(values).model_dump(mode="json"))


def arm(name: str, n: int, wins: int, **values) -> ArmEvidence:
    return ArmEvidence(name, name, n, n, n, n, 0, 0, n, ArmStats(n, wins, wins), **values)


def look(rules: TrialPolicy, *arms: ArmEvidence, shares=None, age_s: float = 10.0, **values) -> Judgement:
    taken = values.pop("looks", ())
    found = Evidence(values.pop("taken_at", age_s), arms, looks=taken)
    return judge(rules, shares or (THREE if len(arms) == 3 else TWO), 0.0, found, age_s, **values)


A = arm("champion", 800, 320)


def test_the_larger_estimate_of_two_winners_is_promoted():
    found = look(policy(), A, arm("challenger", 400, 280), arm("challenger-b", 400, 320))
    assert (found.verdict, found.arm) == ("promote", "challenger-b")
    assert found.difference.estimate == pytest.approx(0.4)
    assert set(found.arms) == {"challenger", "challenger-b"}


def test_a_loser_leaves_while_the_other_goes_on_and_the_last_one_ends_the_trial():
    found = look(policy(), A, arm("challenger", 400, 165), arm("challenger-b", 400, 40))
    assert (found.verdict, set(found.drop)) == (None, {"challenger-b"})
    assert found.reason.startswith("challenger: resolved: the interval")
    both = look(policy(), A, arm("challenger", 400, 40), arm("challenger-b", 400, 40))
    assert (both.verdict, both.drop) == ("roll_back", {})


def test_users_who_leave_a_challenger_that_is_out_do_not_end_the_trial_of_the_other():
    failing = replace(
        arm("challenger-b", 100, 50), assigned_units=400, lost_units=200, unanswered=100.0, failures=100
    )
    found = look(policy(), A, arm("challenger", 400, 165), failing)
    assert (found.verdict, set(found.drop)) == (None, {"challenger-b"})
    left = replace(failing, unanswered=0.0, failures=0)
    assert look(policy(), A, arm("challenger", 400, 165), left).verdict == "invalid"


def test_a_challenger_over_its_guardrail_leaves_at_any_look():
    failing = replace(arm("challenger-b", 20, 10), unanswered=15.0, failures=15)
    found = look(policy(), arm("champion", 40, 20), arm("challenger", 20, 10), failing)
    assert found.verdict is None
    assert "max_error_share" in found.drop["challenger-b"]


def test_alpha_is_shared_by_the_challengers_that_started_even_after_one_has_left():
    pair = arm("champion", 400, 160), arm("challenger", 400, 219)
    alone, shared = look(policy(alpha=0.01), *pair), look(policy(alpha=0.01), *pair, started=4)
    assert alone.difference.high < shared.difference.high
    assert look(policy(alpha=0.01 / 4), *pair).difference == shared.difference


def test_a_mismatch_of_three_arms_is_invalid():
    found = look(policy(), A, arm("challenger", 600, 400), arm("challenger-b", 200, 80))
    assert found.verdict == "invalid"
    assert "800 and 600 and 200" in found.reason
    assert look(policy(), A, arm("challenger", 600, 400), arm("challenger-b", 200, 80),
                is_reweighted=True).verdict == "promote"  # fmt: skip


PLAN = {"type": "group_sequential", "looks": 4, "units": 2000, "boundary": "pocock"}


def test_between_planned_looks_nothing_is_decided_and_at_them_it_is():
    rules = policy(decision=PLAN)
    early = look(rules, arm("champion", 240, 60), arm("challenger", 240, 160))
    assert (early.verdict, early.look) == (None, None)
    assert early.reason == "look 1 of 4 at 500 units: 480 so far"
    found = look(rules, arm("champion", 250, 60), arm("challenger", 250, 160))
    assert (found.verdict, found.look, found.arm) == ("promote", 1, "challenger")
    none = look(rules, arm("champion", 505, 200), arm("challenger", 505, 205), looks=(500,))
    assert (none.verdict, none.look) == (None, 2)
    again = look(rules, arm("champion", 510, 200), arm("challenger", 510, 205), looks=(500, 1010))
    assert (again.verdict, again.look) == (None, None)


def test_the_last_planned_look_ends_the_trial_and_more_are_refused():
    rules = policy(decision=PLAN)
    last = look(rules, arm("champion", 1000, 400), arm("challenger", 1000, 405), looks=(500, 1000, 1500))
    assert last.verdict == "inconclusive"
    assert last.reason.startswith("last planned look")
    more = look(
        rules, arm("champion", 1100, 400), arm("challenger", 1100, 800), looks=(500, 1000, 1500, 2000)
    )
    assert more.verdict == "inconclusive"
    assert "all 4 planned looks are taken" in more.reason


REWARD = {"type": "thompson", "floor": 0.1}


def test_a_trial_for_reward_moves_traffic_and_promotes_nobody_by_itself():
    pair = arm("champion", 400, 160), arm("challenger", 400, 240)
    found = look(policy(decision=REWARD), *pair)
    assert found.verdict is None
    assert found.weights == pytest.approx({"champion": 0.1, "challenger": 0.9}, abs=1e-3)
    assert found.arms["challenger"].best_probability > 0.99
    assert found == look(policy(decision=REWARD), *pair)
    rules = policy(decision=REWARD, deadline_h=0.001)
    assert look(rules, *pair).verdict == "inconclusive"
    rules = policy(decision={**REWARD, "promote_at": 0.95}, deadline_h=0.001)
    assert (look(rules, *pair).verdict, look(rules, *pair).arm) == ("promote", "challenger")
    few = arm("champion", 40, 16), arm("challenger", 40, 30)
    assert look(policy(decision=REWARD), *few).weights is None
    assert look(rules, *few).verdict == "inconclusive"


WON = arm("champion", 400, 120), arm("challenger", 400, 240)


def test_old_evidence_never_promotes_but_may_roll_back():
    assert look(policy(), *WON).verdict == "promote"
    old = look(policy(), *WON, age_s=STALE_S + 11, taken_at=10.0)
    assert (old.verdict, old.reason) == (None, f"the evidence is {STALE_S + 1:.0f} s old")
    lost = arm("champion", 400, 240), arm("challenger", 400, 120)
    assert look(policy(), *lost, age_s=STALE_S + 11, taken_at=10.0).verdict == "roll_back"
    assert look(policy(), *WON, taken_at=math.nan).verdict is None


COST = {"metric": {"name": "latency_s", "type": "mean", "higher_is_better": False}, "limit": 2.0}


def test_a_guardrail_that_cannot_speak_keeps_a_promotion_back():
    rules = policy(guardrails=[COST])
    found = look(rules, *WON)
    assert (found.verdict, found.reason) == (None, "guardrail latency_s: too few values to speak")
    seen = [replace(each, metrics={"latency_s": Moments(400, 400.0, 500.0)}) for each in WON]
    assert look(rules, *seen).verdict == "promote"
    slow = replace(WON[1], metrics={"latency_s": Moments(400, 1200.0, 3700.0)})
    found = look(rules, seen[0], slow)
    assert found.verdict == "roll_back"
    assert found.reason == "guardrail: challenger: latency_s 3 is beyond 2"


def test_every_field_of_a_judgement_and_of_evidence_survives_json():
    rules = policy(guardrails=[COST], decision=PLAN)
    values = {"metrics": {"m": Moments(1, math.nan, 2.0)}, "histograms": {"m": {-3: 4, 7: 1}}}
    evidence = Evidence(5.0, (WON[0], replace(WON[1], **values)), 1, 2, looks=(500,))
    again = Evidence.from_json(json.loads(json.dumps(evidence.to_json())))
    assert again.to_json() == evidence.to_json()
    assert again.arm("challenger").histograms == {"m": {-3: 4, 7: 1}}
    found = judge(rules, TWO, 0.0, evidence, 5.0)
    assert Judgement.from_json(json.loads(json.dumps(found.to_json()))).to_json() == found.to_json()


# Written by the version that knew two arms and one metric.
OLD_POLICY = {
    "metric": {"name": "resolved", "type": "proportion", "higher_is_better": True, "missing": "zero"},
    "challenger_share": 0.5, "coverage": 1.0, "alpha": 0.05, "minimum_units": 200, "tuning_units": None,
    "sample_ratio_alpha": 0.001, "deadline_h": 336.0, "minimum_duration_s": 0.0, "max_error_share": 0.1,
    "guardrail_alpha": 0.05,
}  # fmt: skip
OLD_ARM = {
    "assigned_units": 400, "exposed_units": 400, "requests": 400, "exposures": 400, "failures": 0,
    "fallbacks": 0, "outcomes": 400, "unanswered": 0.0,
}  # fmt: skip
OLD_TABLE = {
    "id": "svc-1", "seed": "s", "coverage": 1.0, "hash_version": 2,
    "arms": [{"name": "champion", "version": "1", "weight": 0.5},
             {"name": "challenger", "version": "2", "weight": 0.5}],
}  # fmt: skip
OLD_DECISION = {
    "id": "svc-1", "trial_id": "svc-1", "service": "svc", "verdict": "promote",
    "reason": "resolved: the challenger is better, difference +0.3 in (+0.1869, +0.4131)",
    "actor": "seatrial controller", "decided_at": 50.0,
    "evidence": {"taken_at": 50.0, "ignored_outcomes": 0, "arms": [
        {**OLD_ARM, "name": "champion", "version": "1",
         "stats": {"n": 400, "total": 120.0, "total_squares": 120.0}},
        {**OLD_ARM, "name": "challenger", "version": "2",
         "stats": {"n": 400, "total": 240.0, "total_squares": 240.0}}]},
    "judgement": {
        "verdict": "promote", "reason": "", "srm_p": 1.0, "failures_p": 1.0,
        "difference": {"estimate": 0.3, "low": 0.18685, "high": 0.41315, "p_value": None},
        "lift": {"estimate": 1.0, "low": 0.5, "high": 1.7, "p_value": None}},
}  # fmt: skip


def test_a_record_of_an_older_version_replays_to_the_same_verdict():
    decision = Decision.from_json(OLD_DECISION)
    table = TrialTable.from_json(OLD_TABLE)
    assert table.to_json() == OLD_TABLE
    trial = Trial("svc-1", "svc", 1, "closed", table, OLD_POLICY, "1", {"challenger": "2"}, 10.0, 10.0)
    found = look_at(trial, decision.evidence, decision.decided_at)
    assert (found.verdict, decision.arm) == (decision.verdict, found.arm)
    assert found.reason.startswith("resolved: the challenger is better, difference +0.3 in (")
    assert table.arms == (Arm("champion", "1", 0.5), Arm("challenger", "2", 0.5))


def test_of_what_requests_say_by_themselves_less_is_better():
    assert set(MEASURES) == BUILT_IN
    rules = policy(guardrails=[{"metric": {"name": "ttft_s", "type": "quantile"}, "margin": 0.1}])
    assert not rules.guardrails[0].metric.higher_is_better
    assert rules.metric.higher_is_better
    assert policy(
        metric={"name": "requests", "type": "count", "higher_is_better": True}
    ).metric.higher_is_better


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({"metric": {"type": "ratio"}}, "give it to a `ratio`"),
        ({"metric": {"denominator": "requests"}}, "only to a `ratio`"),
        ({"metric": {"type": "quantile", "covariate_h": 1}}, "covariate_h"),
        ({"metric": {"name": "latency_s"}}, "is no share"),
        ({"guardrails": [{"metric": {}}]}, "limit"),
        ({"guardrails": [{"metric": {}, "limit": 1, "margin": 1}]}, "limit"),
        ({"metric": {"type": "quantile"}, "decision": REWARD}, "sequential"),
        ({"metric": {"name": "cost", "type": "mean"}}, "prices"),
        ({"guardrails": [{"metric": {"type": "count"}, "limit": 1}]}, "described twice"),
        ({"ramp": {"steps": [0.5, 0.1]}}, "growing"),
        ({"ramp": {"steps": [0.00001, 0.1]}}, "at least 0.0001"),
        ({"ramp": {"steps": [0.1, 0.6]}}, "challengers see at most 0.5"),
        ({"ramp": {"steps": [0.1, 0.5]}, "coverage": 0.8}, "challengers see at most 0.4"),
        ({"namespace": {"name": "home", "start": 0.5, "end": 0.5}}, "end"),
    ],
)
def test_a_policy_that_cannot_be_is_refused(values, field):
    with pytest.raises(ValueError, match=field):
        TrialSection.model_validate(values)


EQUAL = (
    Case("two challengers", share_of(0.3), shares=(0.5, 0.25, 0.25), units=2000),
    Case("adjusted", with_history(0.8), {"metric": {"type": "mean", "covariate_h": 1}}, units=2000),
    Case("planned looks", share_of(0.3), {"decision": {**PLAN, "boundary": "lan_demets_pocock"}}),
)


@pytest.mark.parametrize("case", EQUAL, ids=lambda case: case.name)
def test_equal_arms_are_rarely_told_apart(case):
    trials = 300
    ended = list(run(case, trials))
    wrong = sum(each.verdict in ("promote", "roll_back", "drop") for each in ended) / trials
    assert wrong <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / trials)
    assert sum(each.naive for each in ended) / trials > 0.07


def test_a_first_step_of_few_buckets_is_no_sample_ratio_mismatch():
    """Two challengers with half of 0.1 % of the traffic: they have 3 buckets each, and the champion 5."""
    rules = TrialSection.model_validate({"challenger_share": 0.5}).model_dump(mode="json")
    arms = (Arm("champion", "1", 0.5), Arm("challenger", "2", 0.25), Arm("challenger-b", "3", 0.25))
    table = TrialTable("svc-1", "seed", 0.001, arms)
    made = Trial(
        "svc-1", "svc", 1, "open", table, rules, "1", {"challenger": "2", "challenger-b": "3"}, 0.0, 0.0
    )
    # Everybody is in one of the hash's 10,000 buckets; a user for each says whose they are.
    arm_of = {bucket(user, "seed"): assign(user, table) for user in map(str, range(150_000))}
    assert len(arm_of) == 10_000
    names: Counter[str] = Counter()
    for kept, users in zip(arm_of.values(), np.random.default_rng(3).poisson(2_000, 10_000), strict=True):
        if kept is not None:
            names[kept.name] += int(users)
    counted = tuple(replace(arm(each.name, names[each.name], 0), outcomes=0) for each in arms)
    found = look_at(made, Evidence(10.0, counted), 10.0)
    assert names.total() > 19_000
    assert found.srm_p > 0.05
    assert found.verdict is None
    lost = replace(counted[2], assigned_units=counted[2].assigned_units * 7 // 10)
    assert look_at(made, Evidence(10.0, (*counted[:2], lost)), 10.0).verdict == "invalid"
