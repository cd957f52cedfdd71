"""Group-sequential boundaries against published tables, and bandits and power beside them."""

from __future__ import annotations

import math

import numpy as np
import pytest

from seatrial.experiments.bandit import best_probabilities, wanted_weights
from seatrial.experiments.group_sequential import compare_at_look, constant, z_bounds
from seatrial.experiments.policy import GroupSequential, Thompson
from seatrial.experiments.power import effect_of, fixed_units, planned_units, sequence_z, sequential_units
from seatrial.experiments.sequential import ArmStats, compare
from tests.experiments.simulation import spent_after_drop

POCOCK = {1: 1.960, 2: 2.178, 3: 2.289, 4: 2.361, 5: 2.413, 10: 2.555}
OBRIEN = {2: 1.977, 3: 2.004, 4: 2.024, 5: 2.040, 10: 2.087}


@pytest.mark.parametrize(("looks", "z"), POCOCK.items())
def test_pococks_constants(looks, z):
    assert constant("pocock", looks, 0.05) == pytest.approx(z, abs=6e-4)


@pytest.mark.parametrize(("looks", "z"), OBRIEN.items())
def test_obrien_and_flemings_constants(looks, z):
    assert constant("obrien_fleming", looks, 0.05) == pytest.approx(z, abs=6e-4)
    times = tuple((k + 1) / looks for k in range(looks))
    bounds = z_bounds("obrien_fleming", looks, times, 0.05)
    assert bounds == pytest.approx([bounds[-1] / math.sqrt(time) for time in times], abs=2e-3)


@pytest.mark.parametrize(
    ("boundary", "expected"),
    [
        # Published with the R package ldbounds, two-sided, alpha 0.05.
        ("lan_demets_obrien_fleming", [4.877, 3.357, 2.680, 2.290, 2.031]),
        ("lan_demets_pocock", [2.438, 2.427, 2.410, 2.397, 2.386]),
    ],
)
def test_spending_functions_give_the_published_bounds(boundary, expected):
    found = z_bounds(boundary, 5, (0.2, 0.4, 0.6, 0.8, 1.0), 0.05)
    assert found == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize(
    "boundary", ["pocock", "obrien_fleming", "lan_demets_pocock", "lan_demets_obrien_fleming"]
)
def test_at_uneven_times_all_looks_together_still_err_with_alpha(boundary):
    times = (0.15, 0.5, 0.55, 1.07)
    bounds = np.array(z_bounds(boundary, 4, times, 0.05))
    steps = np.sqrt(np.diff([0.0, *times]))
    walks = np.cumsum(np.random.default_rng(3).standard_normal((200_000, 4)) * steps, axis=1)
    crossed = (np.abs(walks) / np.sqrt(times) >= bounds).any(axis=1).mean()
    assert crossed == pytest.approx(0.05, abs=3 * math.sqrt(0.05 * 0.95 / 200_000))


@pytest.mark.parametrize("shares", [(0.5, 0.25, 0.25), (0.1, 0.45, 0.45)])
@pytest.mark.parametrize("left", [1, 2, 4])
@pytest.mark.parametrize("boundary", ["pocock", "obrien_fleming", "lan_demets_obrien_fleming"])
def test_after_a_challenger_has_left_the_other_still_errs_with_its_part_of_alpha(boundary, left, shares):
    # Counted by the units of all arms it was 0.0252 to 0.0269.
    assert spent_after_drop(boundary, shares, left) == pytest.approx(0.025, abs=2e-5)


def test_more_looks_than_planned_are_refused():
    with pytest.raises(ValueError, match="6 taken of 5 planned"):
        z_bounds("pocock", 5, (0.2, 0.4, 0.6, 0.8, 0.9, 1.0), 0.05)
    with pytest.raises(ValueError, match="growing times"):
        z_bounds("pocock", 5, (0.2, 0.2), 0.05)


def test_the_repeated_p_value_meets_alpha_where_the_interval_touches_zero():
    plan = GroupSequential("lan_demets_obrien_fleming", 3, 300)
    for estimate in np.linspace(0.15, 0.45, 31):
        found = compare_at_look(plan, (100,), 200, float(estimate), 0.01, 0.05)
        if abs(found.low) > 0.01:
            assert (found.p_value <= 0.05) == (found.low > 0)


def test_planned_looks_cost_as_much_as_is_published():
    effect = effect_of(0.3, 0.1, 0.5, None)
    once = fixed_units(effect, 0.05, 0.8)
    # Jennison and Turnbull, Group Sequential Methods (2000), tables 2.2 and 2.4: K = 5, power 0.8.
    assert planned_units(effect, 0.05, 0.8, "pocock", 5).worst / once == pytest.approx(1.229, abs=2e-3)
    assert planned_units(effect, 0.05, 0.8, "obrien_fleming", 5).worst / once == pytest.approx(
        1.028, abs=2e-3
    )


def test_the_fixed_test_needs_what_every_table_says():
    assert fixed_units(effect_of(10, 0.1, 0.5, 2.0), 0.05, 0.8) == pytest.approx(4 * 4 * 7.849, rel=1e-3)


def test_the_sequential_test_pays_for_its_looks_and_saves_on_average():
    effect = effect_of(0.3, 0.2, 0.5, None)
    once = fixed_units(effect, 0.05, 0.9)
    found = sequential_units(effect, 0.05, 0.9, tuning_n=once, minimum_units=100)
    assert once < found.worst < 2.2 * once
    assert found.expected < once


def test_power_goes_by_the_interval_that_decides():
    n, stats = 1000, (ArmStats(500, 150, 150), ArmStats(500, 200, 200))
    found = compare(*stats, tuning_n=400, relative=False, proportion=True)
    variance = sum(each.variance(proportion=True) / each.n for each in stats)
    assert (found.high - found.estimate) / math.sqrt(variance) == pytest.approx(sequence_z(n, 0.05, 400))


@pytest.mark.parametrize(("baseline", "lift", "sd"), [(0.9, 0.2, None), (0.3, 0.0, None), (0.0, 0.1, 1.0)])
def test_lifts_that_cannot_be_are_refused(baseline, lift, sd):
    with pytest.raises(ValueError, match="give"):
        effect_of(baseline, lift, 0.5, sd)


def test_the_probability_of_being_best_is_that_of_draws():
    arms = {"a": ArmStats(200, 60, 60), "b": ArmStats(150, 54, 54), "c": ArmStats(20, 5, 5)}
    random = np.random.default_rng(1)
    draws = np.stack([random.beta(1 + s.total, 1 + s.n - s.total, 400_000) for s in arms.values()])
    best = np.bincount(draws.argmax(axis=0), minlength=3) / 400_000
    found = best_probabilities(arms, higher_is_better=True, binary=True)
    assert list(found.values()) == pytest.approx(best, abs=3e-3)
    least = best_probabilities(arms, higher_is_better=False, binary=True)
    assert least["a"] + least["b"] + least["c"] == pytest.approx(1.0)
    assert least["c"] == pytest.approx(np.mean(draws.argmin(axis=0) == 2), abs=3e-3)


def test_means_are_compared_as_normal_and_the_same_evidence_gives_the_same():
    arms = {"a": ArmStats(400, 2000.0, 14_000.0), "b": ArmStats(400, 2200.0, 16_100.0)}
    found = best_probabilities(arms, higher_is_better=True, binary=False)
    spread = sum(arm.variance(proportion=False) / arm.n for arm in arms.values())
    expected = 0.5 * (1 + math.erf(0.5 / math.sqrt(2 * spread)))
    assert found["b"] == pytest.approx(expected, abs=1e-3)
    assert found == best_probabilities(arms, higher_is_better=True, binary=False)
    assert best_probabilities({**arms, "c": ArmStats(0, 0, 0)}, higher_is_better=True, binary=False) == {}


def test_weights_keep_the_floor_and_move_only_when_it_is_worth_it():
    plan, present = Thompson(0.1, 0.05), {"a": 0.5, "b": 0.5}
    assert wanted_weights(plan, present, {"a": 0.0, "b": 1.0}) == pytest.approx({"a": 0.1, "b": 0.9})
    assert wanted_weights(plan, present, {"a": 0.47, "b": 0.53}) is None
    assert wanted_weights(plan, present, {}) is None
