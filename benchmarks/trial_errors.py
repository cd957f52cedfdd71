"""How often trials decide wrongly or find what is there, looked at all the time through the real `judge`.

    python -m benchmarks.trial_errors [--trials 2000] [--only shares,rare,...]

One JSON object a case. A/A cases: the share of trials that promoted, dropped or rolled back one of equal
arms, beside a z-test at 1.96 under the same looks and the target, alpha plus two binomial standard errors;
where one of two challengers is made to leave, the other's half of alpha.
Lifts: the share found, and the mean units to the decision against the test that is looked at once. The first
line is the z-test's known inflation (Armitage, McPherson and Rowe 1969), the second what planned looks spend
after a challenger has left; both are integrated, not simulated. Exit code
1 when a target is missed.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from typing import Any

from seatrial.experiments.group_sequential import Walk, z_bounds
from seatrial.experiments.power import effect_of, fixed_units, sequential_units
from tests.experiments.simulation import Case, ratio, run, share_of, skewed, spent_after_drop, with_history

ALPHA = 0.05
NAIVE = {1: 0.050, 2: 0.083, 3: 0.107, 4: 0.126, 5: 0.142, 10: 0.193, 20: 0.248, 50: 0.320}
MEAN = {"metric": {"type": "mean"}}
PLAN = {"type": "group_sequential", "looks": 5, "units": 4000}

EQUAL = (
    Case("shares", share_of(0.3)),
    Case("rare shares, split 90:10", share_of(0.02), shares=(0.9, 0.1)),
    Case("skewed means", skewed(1.5), MEAN),
    Case("skewed means, split 90:10", skewed(1.0), MEAN, shares=(0.9, 0.1)),
    Case("ratio of totals", ratio, {"metric": {"type": "ratio", "denominator": "requests"}}),
    Case("adjusted by history", with_history(0.8), {"metric": {"type": "mean", "covariate_h": 336}}),
    Case("two challengers", share_of(0.3), shares=(0.5, 0.25, 0.25)),
    Case("5 planned looks, pocock", share_of(0.3), {"decision": PLAN | {"boundary": "pocock"}}),
    Case("5 planned looks, obrien", share_of(0.3), {"decision": PLAN | {"boundary": "obrien_fleming"}}),
    Case("5 planned looks, lan_demets", share_of(0.3), {"decision": PLAN}),
    Case("a challenger leaves, 5 planned looks", share_of(0.3, 0.0, -1.0),
         {"decision": PLAN | {"boundary": "pocock"}}, shares=(0.5, 0.25, 0.25),
         hopeless=frozenset({"challenger-b"})),
)  # fmt: skip


def main() -> None:
    """Run every case."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--trials", type=int, default=2000)
    parser.add_argument("--only", default="", help="beginnings of cases' names, with commas between")
    options = parser.parse_args()
    wanted = tuple(options.only.split(","))
    is_well = True
    for found in (naive_table(), after_a_drop(), *cases(options.trials, wanted)):
        print(json.dumps({"benchmark": "trial_errors", **found}), flush=True)
        is_well &= found["met"]
    sys.exit(0 if is_well else 1)


def cases(trials: int, wanted: tuple[str, ...]) -> Any:
    """The figures of each case whose name begins as wanted, one after the other."""
    yield from (wrong(case, trials) for case in EQUAL if case.name.startswith(wanted))
    if "a lift".startswith(wanted):
        yield lift(trials)


def naive_table() -> dict[str, Any]:
    """Type-I error of a z-test at 1.96 after K even looks, beside the published figures."""
    walk, found = Walk(), {}
    for look in range(1, max(NAIVE) + 1):
        walk.step(float(look), 1.959964)
        if look in NAIVE:
            found[look] = round(walk.spent, 4)
    met = all(abs(found[look] - NAIVE[look]) < 6e-4 for look in NAIVE)
    return {"case": "z-test by number of looks", "naive": found, "published": NAIVE, "met": met}


def after_a_drop() -> dict[str, Any]:
    """The most that one of two comparisons spends of its half of alpha in planned looks after the other left.

    Integrated through the bounds of the real `judge`; beside it, as if all units that were ever seen counted.
    """
    shares, looks = (0.1, 0.45, 0.45), range(1, 5)
    ours = max(spent_after_drop("pocock", shares, left) for left in looks)
    found = {
        "ours": round(ours, 5),
        "all_units": round(max(_by_all_units(shares, left) for left in looks), 5),
    }
    return {
        "case": "alpha after one of two left",
        **found,
        "target": ALPHA / 2,
        "met": ours <= ALPHA / 2 + 1e-4,
    }


def _by_all_units(shares: tuple[float, float, float], left: int) -> float:
    """What Pocock's bounds spend when looks go by all units, those who left at look ``left`` included."""
    walk = Walk()
    for number, z in enumerate(z_bounds("pocock", 5, (0.2, 0.4, 0.6, 0.8, 1.0), ALPHA / 2), start=1):
        walk.step(number - shares[2] * min(number, left), z)
    return walk.spent


def wrong(case: Case, trials: int) -> dict[str, Any]:
    """The share of trials of equal arms that told them apart."""
    start = time.perf_counter()
    ended = list(run(case, trials))
    ours = sum(each.verdict in ("promote", "roll_back", "drop") for each in ended) / trials
    alpha = ALPHA * (1 - len(case.hopeless) / (len(case.shares) - 1))
    target = alpha + 2 * math.sqrt(alpha * (1 - alpha) / trials)
    return {
        "case": case.name,
        "trials": trials,
        "ours": ours,
        "promoted": sum(each.verdict == "promote" for each in ended) / trials,
        "invalid": sum(each.verdict == "invalid" for each in ended) / trials,
        "naive": sum(each.naive for each in ended) / trials,
        "target": round(target, 4),
        "met": ours <= target,
        "seconds": round(time.perf_counter() - start, 1),
    }


def lift(trials: int) -> dict[str, Any]:
    """A lift of a third over 30 %, in as many units as `seatrial power` asks for a power of 0.8."""
    start = time.perf_counter()
    effect = effect_of(0.3, 1 / 3, 0.5, None)
    once = fixed_units(effect, ALPHA, 0.8)
    planned = sequential_units(effect, ALPHA, 0.8, tuning_n=200, minimum_units=200)
    ended = list(run(Case("a lift", share_of(0.3, 1 / 3), units=math.ceil(planned.worst)), trials))
    found = sum(each.verdict == "promote" for each in ended) / trials
    error = 2 * math.sqrt(0.8 * 0.2 / trials)
    return {
        "case": "a lift of a third over 0.3",
        "trials": trials,
        "found": found,
        "power": 0.8,
        "rolled_back": sum(each.verdict == "roll_back" for each in ended) / trials,
        "mean_units": round(sum(each.units for each in ended) / trials),
        "mean_units_planned": round(planned.expected),
        "most_units": round(planned.worst),
        "fixed_units": round(once),
        "mean_over_fixed": round(sum(each.units for each in ended) / trials / once, 3),
        "met": found >= 0.8 - error - 0.02,
        "seconds": round(time.perf_counter() - start, 1),
    }


if __name__ == "__main__":
    main()
