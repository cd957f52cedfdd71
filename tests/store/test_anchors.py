"""Hashes of audit records: kept once, in the order of their records; decisions keep what decided them."""

from __future__ import annotations

import dataclasses

from seatrial.config.trial import TrialSection
from seatrial.experiments.assignment import Arm, TrialTable
from seatrial.experiments.evidence import ArmEvidence, Evidence
from seatrial.experiments.record import Anchor
from seatrial.experiments.trial import Decision, Trial, look_at
from seatrial.store import Store


def test_the_first_hash_of_a_record_stands(store: Store):
    first, second = (Anchor(f"svc-{n}", "svc", n, f"{n:064}", str(n)) for n in (1, 2))
    assert store.last_anchor("svc") is None
    for each in (second, first, dataclasses.replace(first, hash="f" * 64, champion=None)):
        store.add_anchor(each)
    store.add_anchor(Anchor("other-9", "other", 9, "9" * 64, None))
    assert store.anchors("svc") == [first, second]
    assert store.last_anchor("svc") == second
    assert store.last_anchor("other").champion is None
    assert store.anchors("nobody") == []


def test_a_decision_keeps_what_decided_it_and_a_trial_its_state(store: Store):
    arms = (Arm("champion", "1", 0.5), Arm("challenger", "2", 0.5))
    policy = TrialSection().model_dump(mode="json")
    evidence = Evidence(2.0, tuple(ArmEvidence.empty(arm.name, arm.version) for arm in arms))
    for number in (1, 2):
        name = f"svc-{number}"
        table = TrialTable(name, "seed", 1.0, arms)
        trial = Trial(name, "svc", number, "open", table, policy, "1", {"challenger": "2"}, 1.0, 1.0)
        store.open_trial(trial)
    judgement = look_at(trial, evidence, 2.0)
    made = ("svc-1", "svc-1", "svc", "superseded", "moved", "who", evidence, judgement, 2.0)
    store.decide(Decision(*made, "person"))
    store.close_trial(store.decision("svc-1"))
    assert store.decision("svc-1").cause == "person"
    assert store.trial_states("svc") == {"svc-1": "closed", "svc-2": "open"}
