"""Tables with rows in them go down to any earlier revision and up again, and keep what those can hold."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import select, text

from seatrial.experiments.assignment import Arm
from seatrial.experiments.evidence import Evidence
from seatrial.experiments.record import Anchor
from seatrial.experiments.trial import Decision, Look, Stop, Trial, look_at
from seatrial.store import Store
from seatrial.store.database import MIGRATIONS, writing
from seatrial.store.job import Attempt, Job, Need, Spec
from seatrial.store.tables import metadata, outcomes, trials
from tests.store.rows import exposure, outcome, trial

FIRST = "0002"  # tables before it were there in the first version of all


def config() -> Config:
    made = Config()
    made.set_main_option("script_location", str(MIGRATIONS))
    return made


def revisions() -> list[str]:
    """Those after :data:`FIRST`, the newest first."""
    found = [each.revision for each in ScriptDirectory.from_config(config()).walk_revisions()]
    return found[: found.index(FIRST)]


def go(store: Store, move: Callable[[Config, str], None], revision: str) -> None:
    with writing(store.engine) as connection:
        made = config()
        made.attributes["connection"] = connection
        move(made, revision)


METRIC = {"metric": {"type": "mean", "covariate_h": 1.0, "missing": "exclude"}}


def fill(store: Store) -> None:
    """Rows in every table: services, trials of all kinds, what came of them, jobs."""
    for name, now in (("svc", 1.0), ("other", 2.0), ("leaving", 3.0)):
        store.put_service(name, {"a": name}, now=now)
    store.put_state("svc", {"phase": "trial"})
    store.ask_delete("leaving", now=4.0)
    store.put_replica(
        {
            "replica_id": "a",
            "app": "svc",
            "service": "svc",
            "revision": "x",
            "loaded": {"1": "ready"},
            "at": 1.0,
        }
    )
    store.take_lease("controller", "me", now=1.0, lasts_s=20)
    earlier, running = trial(1), trial(2, **METRIC)
    store.open_trial(earlier)
    before = {"trial_id": earlier.id, "at": running.opened_at - 5}
    store.add_exposures([exposure("before", "ann", **before)])
    store.add_outcomes([outcome("before", 0.5)])
    end(store, earlier)
    store.open_trial(running)
    champion = running.table.arms[0]
    arms = (champion, Arm("challenger", "2", 0.25), Arm("challenger-b", "3", 0.25))
    several = replace(trial(1, "other"), challengers={"challenger": "2", "challenger-b": "3"})
    store.open_trial(replace(several, table=replace(several.table, arms=arms)))
    store.ask_stop(several.id, Stop("anna", "enough"))
    alone = (champion, Arm("challenger-c", "4", 0.5))
    single = replace(trial(1, "third"), challengers={"challenger-c": "4"})
    store.open_trial(replace(single, table=replace(single.table, arms=alone)))
    now = {"trial_id": running.id, "at": running.opened_at + 1}
    store.add_exposures(
        [exposure(f"r{n}", f"u{n}", ("champion", "challenger")[n % 2], **now) for n in range(6)]
    )
    store.add_exposures([exposure("rann", "ann", prompt_tokens=5, refused=True, **now)])
    store.add_outcomes([outcome(f"r{n}", n / 10, now=20.0) for n in range(6)])
    store.add_outcomes([outcome("nobody", 1.0, now=20.0), outcome(None, 1.0, unit="u1", now=20.0)])
    found = store.evidence(running, now=30.0)
    store.add_look(Look(running.id, found.units, 30.0, {"champion": 3}, look_at(running, found, 30.0)))
    store.add_exposures([exposure("news", "u1", "challenger", **now)])
    store.add_job(
        Job("job", "d", "x", "t", 3, Spec("run", "again", {}, {}, "p", "r.yaml"), Need(1, 1.0, 0.0), 1.0, 2.0)
    )
    queued = store.job("job")
    assert queued is not None
    store.begin_attempt(queued, replace(queued, state="running"), Attempt("job", 0, "t", 2.0, 10.0))
    store.add_package("p", b"zip", now=1.0)


def end(store: Store, made: Trial) -> None:
    evidence = store.evidence(made, now=20.0)
    judged = look_at(made, evidence, 20.0)
    decision = Decision(
        made.id, made.id, made.service, "inconclusive", "enough", "anna", evidence, judged, 20.0, "person"
    )
    store.decide(decision)
    store.mark_step(made.id, "alias:challenger")
    store.add_anchor(Anchor(made.id, made.service, 1, "h", "1"))
    store.close_trial(decision)


def requests_alone(store: Store) -> Evidence:
    """The running trial's evidence without what older tables do not know: covariates, outcomes of units."""
    made = trial(2, metric={"type": "mean", "missing": "exclude"})
    with store.engine.begin() as connection:
        connection.execute(outcomes.delete().where(outcomes.c.unit.is_not(None)))
    return store.evidence(made, now=30.0)


def test_every_table_has_rows(store: Store) -> None:
    fill(store)
    with store.engine.connect() as connection:
        empty = [each.name for each in metadata.sorted_tables if not connection.execute(select(each)).first()]
    assert empty == []


@pytest.mark.parametrize("revision", revisions())
def test_tables_with_rows_go_below_a_revision_and_up_again(store: Store, revision: str) -> None:
    fill(store)
    below = ScriptDirectory.from_config(config()).get_revision(revision).down_revision
    go(store, command.downgrade, str(below))
    with store.engine.connect() as connection:
        assert connection.execute(text("SELECT version_num FROM alembic_version")).scalar() == below
    go(store, command.upgrade, "head")

    rows = store.services()
    assert {name: (row["config"]["a"], row["state"]) for name, row in rows.items()} == {
        "leaving": ("leaving", {}),
        "other": ("other", {}),
        "svc": ("svc", {"phase": "trial"}),
    }
    assert {name: row["route_prefix"] for name, row in rows.items()} == {
        "leaving": "/leaving",
        "other": "/other",
        "svc": "/",
    }
    decision = store.decision("svc-1")
    assert decision is not None
    assert (decision.verdict, decision.reason, decision.actor) == ("inconclusive", "enough", "anna")
    closed = store.trial("svc-1")
    assert closed is not None
    assert (closed.state, closed.steps, closed.closed_at) == ("closed", ("alias:challenger",), 20.0)
    assert [look.exposures for look in store.looks("svc-2")] == [{"champion": 3}]
    assert store.replicas("svc")[0]["loaded"] == {"1": "ready"}
    assert store.take_lease("controller", "another", now=2.0, lasts_s=20) == "me"
    for name, challengers in (
        ("svc-2", {"challenger": "2"}),
        ("other-1", {"challenger": "2", "challenger-b": "3"}),
        ("third-1", {"challenger-c": "4"}),
    ):
        found = store.trial(name)
        assert found is not None
        assert dict(found.challengers) == challengers
        assert found.ramped_at == found.opened_at
        assert look_at(found, store.evidence(found, now=30.0), 30.0).verdict is None

    again = requests_alone(store)
    assert [(arm.requests, arm.outcomes) for arm in again.arms] == [(4, 3), (4, 3)]
    assert sum(arm.stats.total for arm in again.arms) == pytest.approx(1.5)
    assert store.outcome_counts("svc") == {"joined": 7, "unknown": 1, "early": 0, "late": 0}
    assert [each.key for each in store.anchors("svc")] in ([], ["svc-1"])
    store.open_trial(trial(3))  # and all of it can be written to
    store.add_anchor(Anchor("svc-9", "svc", 2, "h", "1"))


def test_a_trial_from_before_several_challengers_has_the_one_of_its_table(store: Store) -> None:
    go(store, command.downgrade, FIRST)
    table = {"id": "svc-1", "seed": "s", "coverage": 1.0, "hash_version": 2}
    arms: list[dict[str, Any]] = [{"name": "champion", "version": "1", "weight": 0.5}]
    arms.append({"name": "challenger", "version": '2"', "weight": 0.5})  # any text
    row = {"table": json.dumps({**table, "arms": arms}), "challenger": '2"'}
    with store.engine.begin() as connection:
        connection.execute(
            text(
                'INSERT INTO trials (id, service, number, state, "table", policy, champion, challenger, '
                "opened_at, steps) "
                "VALUES ('svc-1', 'svc', 1, 'open', :table, '{}', '1', :challenger, 7.0, '[]')"
            ),
            row,
        )
    go(store, command.upgrade, "head")
    with store.engine.connect() as connection:
        found = connection.execute(select(trials)).mappings().one()
    assert (json.loads(found["challengers"]), found["ramped_at"]) == ({"challenger": '2"'}, 7.0)
