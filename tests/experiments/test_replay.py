"""What a record says is recomputed from it alone: after JSON, of any policy, whoever ended the trial."""

from __future__ import annotations

import json
from typing import Any

import pytest

from seatrial.config.trial import TrialSection
from seatrial.experiments.assignment import Arm, TrialTable
from seatrial.experiments.evidence import ArmEvidence, Evidence
from seatrial.experiments.replay import replay
from seatrial.experiments.sequential import ArmStats
from seatrial.experiments.trial import Decision, Look, Stop, Trial, look_at
from seatrial.registry.audit_record import record_of

OPENED, DAY = 1_000.0, 86_400.0
CHALLENGERS = {"challenger": "2", "challenger-b": "3"}


def arm_of(name: str, version: str, units: int, wins: int) -> ArmEvidence:
    stats = ArmStats(units, float(wins), float(wins))
    return ArmEvidence(name, version, units, units, units, units, 0, 0, units, stats)


def trial_of(challengers: dict[str, str], dropped: dict[str, str], **policy: Any) -> Trial:
    section = TrialSection.model_validate({"minimum_units": 200, **policy}).model_dump(mode="json")
    here = {"champion": "1", **{name: v for name, v in challengers.items() if name not in dropped}}
    arms = tuple(Arm(name, version, 1 / len(here)) for name, version in here.items())
    table = TrialTable("svc-1", "seed", 1.0, arms)
    return Trial(
        "svc-1", "svc", 1, "open", table, section, "1", challengers, OPENED, OPENED + 5, dropped=dropped
    )


def record(trial: Trial, rates: dict[str, tuple[int, int]], looks: tuple[int, ...] = (), **ended: Any) -> Any:
    """The record as MLflow gives it back, of a trial whose arms have had these units and successes."""
    now = OPENED + DAY
    arms = tuple(arm_of(arm.name, arm.version, *rates[arm.name]) for arm in trial.table.arms)
    evidence = Evidence(now, arms, looks=looks)
    judgement = look_at(trial, evidence, now)
    decided = {"verdict": judgement.verdict, "reason": judgement.reason, "cause": "judgement", **ended}
    decision = Decision(
        id=trial.id,
        trial_id=trial.id,
        service=trial.service,
        actor="who",
        evidence=evidence,
        judgement=judgement,
        decided_at=now,
        **decided,
    )
    look = Look(trial.id, evidence.units, now, dict.fromkeys(trial.arms, 1), judgement)
    body = record_of(trial, decision, [look], sequence=1, previous_hash="0" * 64, champion_after="1")
    return json.loads(json.dumps(body, allow_nan=False))


def as_format_1(body: dict[str, Any]) -> dict[str, Any]:
    """The same record as it was written before format 2."""
    new = {"cause", "ramped_at", "challengers", "dropped", "stop"}
    kept = {name: value for name, value in body.items() if name not in new}
    return {**kept, "format": 1, "challenger": next(iter(body["challengers"].values()))}


ONE = {"challenger": "2"}
SPENDING = {"type": "group_sequential", "looks": 4, "units": 4000}
CASES = {
    "promote": (trial_of(ONE, {}), {"champion": (1000, 300), "challenger": (1000, 420)}, ()),
    "roll_back": (trial_of(ONE, {}), {"champion": (1000, 420), "challenger": (1000, 300)}, ()),
    "inconclusive": (trial_of(ONE, {}, deadline_h=1), {"champion": (900, 300), "challenger": (901, 310)}, ()),
    "invalid": (trial_of(ONE, {}), {"champion": (2000, 600), "challenger": (1000, 300)}, ()),
    "planned": (
        trial_of(ONE, {}, decision=SPENDING),
        {"champion": (1000, 300), "challenger": (1000, 460)},
        (1000,),
    ),
    "reward": (
        trial_of(ONE, {}, decision={"type": "thompson"}, deadline_h=1),
        {"champion": (900, 300), "challenger": (900, 330)},
        (),
    ),
    "one of two": (trial_of(CHALLENGERS, {"challenger-b": "worse"}),
                   {"champion": (1000, 300), "challenger": (1000, 420)}, ()),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_the_judgement_is_the_same_from_the_record_alone(name: str):
    body = record(*CASES[name])
    assert body["verdict"] is not None
    found = replay(body)
    assert found.agrees, [field for field in found.fields if not field.agrees]
    assert (found.cause, found.obstacle) == ("judgement", None)
    assert len(found.fields) > 15


def test_alpha_is_shared_by_the_challengers_that_the_trial_began_with():
    body = record(*CASES["one of two"])
    alone = replay({**body, "challengers": ONE, "dropped": {}})
    assert not alone.agrees
    wrong = {field.name for field in alone.fields if not field.agrees}
    assert "judgement.difference.low" in wrong


@pytest.mark.parametrize("name", ["promote", "roll_back", "inconclusive", "planned", "reward"])
def test_format_1_with_one_challenger_is_recomputed(name: str):
    assert replay(as_format_1(record(*CASES[name]))).agrees


def test_format_1_after_a_dropped_arm_says_that_it_cannot_be():
    found = replay(as_format_1(record(*CASES["one of two"])))
    assert not found.agrees
    assert found.fields == ()
    assert "challenger, challenger-b are seen" in str(found.obstacle)


def test_a_record_from_before_an_arm_had_a_judgement_of_its_own_is_recomputed():
    body = as_format_1(record(*CASES["promote"]))
    later = {"arms", "drop", "weights", "look", "arm"}
    body["judgement"] = {name: value for name, value in body["judgement"].items() if name not in later}
    body["looks"] = []
    assert replay(body).agrees


@pytest.mark.parametrize(
    ("cause", "verdict", "reason", "stop"),
    [
        ("person", "inconclusive", "stopped: wrong prompt", Stop("ann", "wrong prompt")),
        ("person", "superseded", "champion moved from 1 to 3", None),
        ("person", "superseded", "champion moved from 1 to 3", Stop("ann", "wrong prompt")),
        ("load", "roll_back", "the file is broken", None),
    ],
)
def test_what_comes_before_any_judgement_is_told_apart_from_it(cause, verdict, reason, stop):
    trial = trial_of(ONE, {})
    trial = Trial(**{**vars(trial), "stop": stop})
    rates = {"champion": (50, 10), "challenger": (50, 10)}
    body = record(trial, rates, verdict=verdict, reason=reason, cause=cause)
    for each in (body, as_format_1(body)):
        found = replay(each)
        assert found.cause == cause
        assert found.agrees, [field for field in found.fields if not field.agrees]
    lied = replay({**body, "verdict": "promote"})
    assert [field.name for field in lied.fields if not field.agrees] == ["verdict"]


@pytest.mark.parametrize(
    ("path", "value", "wrong"),
    [
        (("verdict",), "roll_back", "verdict"),
        (("reason",), "because", "reason"),
        (("alpha",), 0.2, "alpha"),
        (("policy", "alpha"), 0.2, "judgement.difference.low"),
        (("judgement", "difference", "estimate"), 0.2, "judgement.difference.estimate"),
        (("judgement", "srm_p"), 0.01, "judgement.srm_p"),
        (("judgement", "arms", "challenger", "failures_p"), 0.3, "judgement.arms.challenger.failures_p"),
        (("evidence", "arms", 1, "stats", "total"), 421.0, "judgement.difference.estimate"),
        (("evidence", "arms", 0, "assigned_units"), 1200, "judgement.srm_p"),
        (("judgement", "extra"), 1, "judgement.extra"),
    ],
)
def test_whatever_was_changed_is_named(path: tuple[Any, ...], value: Any, wrong: str):
    body = record(*CASES["promote"])
    at = body
    for step in path[:-1]:
        at = at[step]
    at[path[-1]] = value
    found = replay(body)
    assert not found.agrees
    assert wrong in [field.name for field in found.fields if not field.agrees]


@pytest.mark.parametrize("broken", [{}, {"format": 3}, {"format": 2}, {"format": 2, "evidence": 3}])
def test_what_is_no_record_is_no_agreement(broken: dict[str, Any]):
    found = replay(broken)
    assert not found.agrees
    assert found.obstacle
