"""What one unit's rows come to, by the kind of the metric."""

from __future__ import annotations

from collections import Counter

import pytest

from seatrial.experiments.evidence import GAMMA, MIN_BUCKET
from seatrial.experiments.policy import MetricPolicy
from seatrial.store import Store
from seatrial.store.figures import Request, Told, UnitFigures, figures_of
from seatrial.store.rules import Rules
from seatrial.store.sums import ArmSums, bucket_of
from tests.store.rows import exposure, outcome, trial

PRICES = {"prompt": 2.0, "completion": 10.0}


def request(name: str, at: float = 0.0, error: str | None = None, status: int = 200, **more) -> Request:
    plain = {
        "latency_s": 2.0,
        "ttft_s": 0.5,
        "prompt_tokens": 1000,
        "completion_tokens": 100,
        "refused": False,
    }
    values = {"arm": "champion", "fallback": False, **plain, **more}
    return Request(request_id=name, at=at, error=error, status=status, **values)


def values(metric: MetricPolicy, requests, told=None, of_unit=(), covariates=None, **more):
    rules = Rules((metric,), more.get("attribution_s"), PRICES)
    found = figures_of(requests, told or {}, of_unit, rules, covariates or {})
    return found["champion"].values[0]


@pytest.mark.parametrize(
    ("name", "type_", "expected"),
    [
        ("requests", "count", 3.0),
        ("errors", "proportion", 1 / 3),
        ("unanswered", "proportion", 2 / 3),
        ("refusals", "proportion", 0.5),
        ("latency_s", "mean", 3.0),
        ("ttft_s", "mean", 0.5),
        ("prompt_tokens", "count", 2000.0),
        ("cost", "mean", 0.003),
    ],
)
def test_requests_speak_for_themselves(name: str, type_: str, expected: float) -> None:
    asked = [
        request("a", latency_s=4.0, refused=True),
        request("b", fallback=True),
        request("c", error="boom", status=500),
    ]
    assert values(MetricPolicy(name, type_), asked)[0] == pytest.approx(expected)


def test_a_mean_a_count_and_a_ratio_of_outcomes() -> None:
    asked = [request("a"), request("b"), request("c", error="boom", status=500)]
    told = {"a": [Told("spent", 3.0, 1.0), Told("spent", 5.0, 1.0)], "c": [Told("spent", 99.0, 1.0)]}
    assert values(MetricPolicy("spent", "mean"), asked, told) == (2.0, 0.0)
    assert values(MetricPolicy("spent", "mean", missing_counts_zero=False), asked, told) == (4.0, 0.0)
    assert values(MetricPolicy("spent", "count"), asked, told) == (8.0, 0.0)
    ratio = MetricPolicy("spent", "ratio", denominator="completion_tokens")
    assert values(ratio, asked, told) == (8.0, 200.0)
    assert values(MetricPolicy("spent", "count", cap=6.0), asked, told) == (6.0, 0.0)
    assert values(MetricPolicy("spent", "mean"), asked[2:], told) is None


def test_what_comes_after_the_window_is_late_and_counts_for_nothing() -> None:
    told = {"a": [Told("resolved", 1.0, 10.0), Told("resolved", 0.0, 10.1), Told("other", 1.0, 99.0)]}
    rules = Rules((MetricPolicy("resolved"),), attribution_s=10.0)
    found = figures_of([request("a")], told, [Told("resolved", 0.0, 11.0)], rules, {})["champion"]
    assert (found.values, found.outcomes, found.late) == (((1.0, 0.0),), 1, 3)


def test_what_was_said_of_a_unit_before_its_first_request_is_early_and_counts_for_nothing() -> None:
    rules = Rules((MetricPolicy("resolved"),))
    asked = [request("a", at=5.0), request("b", at=6.0, arm="challenger")]
    of_unit = [Told("resolved", 1.0, at) for at in (1.0, 3.0, 4.0, 5.0)]
    found = figures_of(asked, {}, of_unit, rules, {}, opened_at=2.0)
    assert (found["champion"].early, found["champion"].outcomes, found["champion"].values[0]) == (
        2,
        1,
        (1.0, 0.0),
    )
    assert (found["challenger"].early, found["challenger"].outcomes) == (0, 0)


def test_figures_survive_their_text_to_the_last_bit() -> None:
    figures = UnitFigures(3, 2, 1, 0, 1, 2, 0, 0, 0, ((0.1 + 0.2, 1e-300), None))
    assert UnitFigures.from_text(figures.to_text()) == figures


def test_what_is_taken_out_leaves_nothing_behind() -> None:
    rules = Rules((MetricPolicy("latency_s", "quantile", quantile=0.95),))
    figures = [UnitFigures(1, 1, 0, 0, 0, 1, 0, 0, 0, ((value, 0.0),)) for value in (0.1, 1e15, 1e-9, -3.7)]
    sums = ArmSums()
    for each in figures:
        sums.change(each, rules, 1)
    assert sums.histogram("latency_s")[MIN_BUCKET] == 1
    for each in reversed(figures[1:]):
        sums.change(each, rules, -1)
    assert (sums.moments(0).n, sums.moments(0).x) == (1, 0.1)
    assert sums.histogram("latency_s") == {bucket_of(0.1): 1}


def test_a_bucket_holds_what_lies_above_the_one_below_it() -> None:
    for value in (1e-6, 0.37, 1.0, 1.02, 1.03, 812.4):
        assert GAMMA ** (bucket_of(value) - 1) < value <= GAMMA ** bucket_of(value) * (1 + 1e-9)


def test_a_unit_is_adjusted_by_what_it_did_before_the_trial_and_the_others_by_the_mean(store: Store) -> None:
    section = {"metric": {"type": "mean", "covariate_h": 1.0, "missing": "exclude"}}
    for number in (1, 2):
        store.open_trial(trial(number, **section))
    made = trial(2, **section)
    before = {"trial_id": "svc-1", "at": made.opened_at - 5}
    store.add_exposures([exposure("r1", "ann", **before), exposure("r2", "bob", **before)])
    store.add_exposures([exposure("r3", "ann", trial_id="svc-1", at=made.opened_at - 3601)])
    told = {"r1": 2.0, "r2": 6.0, "r3": 50.0}
    store.add_outcomes([outcome(name, value) for name, value in told.items()])
    now = {"trial_id": "svc-2", "at": made.opened_at + 1}
    store.add_exposures([exposure(f"now-{unit}", unit, **now) for unit in ("ann", "bob", "cat")])
    store.add_outcomes([outcome(f"now-{unit}", 1.0, now=20.0) for unit in ("ann", "bob", "cat")])
    found = store.evidence(made, now=30.0).arm("champion").metrics["resolved"]
    assert (found.n, found.y, found.yy, found.xy) == (3, 12.0, 4.0 + 36.0 + 16.0, 12.0)
    store.add_outcomes([outcome("r1", 100.0, client_id="late")])  # what comes now changes nothing before
    assert store.evidence(made, now=30.0).arm("champion").metrics["resolved"] == found


def test_late_outcomes_are_counted_apart(store: Store) -> None:
    made = trial(attribution_h=1.0)
    store.open_trial(made)
    store.add_exposures([exposure("r1", "ann", at=1.0), exposure("r2", "bob", at=1.0)])
    store.add_outcomes([outcome("r1", 1.0, now=3601.0), outcome("r2", 1.0, now=3602.0)])
    found = store.evidence(made, now=4000.0)
    assert found.late_outcomes == 1
    assert found.arm("champion").stats.total == 1.0
    assert store.outcome_counts("svc") == {"joined": 1, "unknown": 0, "early": 0, "late": 1}


def test_counts_that_are_zero_are_not_in_a_histogram() -> None:
    assert ArmSums(histograms={"m": Counter({3: 0, 4: 1})}).histogram("m") == {4: 1}
