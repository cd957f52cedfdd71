"""The store, on SQLite and on a real PostgreSQL."""

from __future__ import annotations

import math
import os
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import event, inspect

from seatrial.errors import RetryableError, UserError
from seatrial.experiments.assignment import Namespace
from seatrial.experiments.evidence import ArmEvidence, Evidence
from seatrial.experiments.sequential import UNDEFINED, ArmStats
from seatrial.experiments.trial import Decision, Look, Stop
from seatrial.experiments.verdict import Judgement
from seatrial.store import Store, database
from seatrial.store.tables import exposures, metadata, outcomes, trials
from tests.store.rows import exposure, outcome, trial


def count(store: Store, table) -> int:
    with store.engine.connect() as connection:
        return len(connection.execute(table.select()).all())


def test_the_migrations_make_exactly_the_tables_that_the_code_uses(store):
    with store.engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []


def test_several_processes_may_migrate_at_once(store_url):
    def migrate(_):
        store = Store(store_url)
        store.migrate()
        store.close()

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(migrate, range(4)))
    store = Store(store_url)
    assert store.services() == {}
    store.close()


@contextmanager
def another_first_opener(path: Path) -> Iterator[sqlite3.Connection]:
    """It writes into the file, which is no WAL file yet, until it is told to commit."""
    with closing(sqlite3.connect(path, isolation_level=None, check_same_thread=False)) as found:
        found.execute("BEGIN IMMEDIATE")
        yield found


def test_a_new_file_that_another_process_writes_is_waited_for(tmp_path: Path):
    path = tmp_path / "store.db"
    with another_first_opener(path) as other, closing(Store(f"sqlite:///{path}")) as store:
        soon = threading.Timer(0.5, other.execute, ["COMMIT"])
        soon.start()
        store.migrate()
        soon.join()
        with store.engine.connect() as connection:
            assert connection.exec_driver_sql("PRAGMA journal_mode").scalar_one() == "wal"


def test_a_new_file_that_stays_locked_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(database, "BUSY_TIMEOUT_S", 0.1)
    path = tmp_path / "store.db"
    with (
        another_first_opener(path),
        closing(Store(f"sqlite:///{path}")) as store,
        pytest.raises(RetryableError, match="store: database is locked"),
    ):
        store.services()


def test_many_may_open_a_new_file_at_the_same_moment(tmp_path: Path):
    def connect(start: threading.Barrier, url: str) -> None:
        engine = database.open_engine(url)
        event.listen(engine, "connect", lambda *_: start.wait(60), insert=True)
        engine.connect().close()
        engine.dispose()

    with ThreadPoolExecutor(8) as pool:
        for number in range(60):
            url, start = f"sqlite:///{tmp_path / str(number)}.db", threading.Barrier(8)
            for opened in [pool.submit(connect, start, url) for _ in range(8)]:
                opened.result()


def test_rows_written_twice_count_once(store):
    rows = [exposure(f"r{number}", "u") for number in range(100)]
    store.add_exposures(rows[:60])
    store.add_exposures(rows[40:])
    store.add_exposures([])
    assert count(store, exposures) == 100
    store.add_outcomes([outcome("r1", 1.0), outcome("r1", 1.0), outcome("r2", 0.0)])
    store.add_outcomes([outcome("r1", 0.0), outcome("r1", 0.5, metric="thumbs")])
    assert count(store, outcomes) == 3


def test_a_client_id_keeps_outcomes_of_one_request_apart(store):
    rows = [outcome("r1", 1.0, client_id="a"), outcome("r1", 0.0, client_id="b")]
    store.add_outcomes(rows + rows)
    assert count(store, outcomes) == 2


def test_writers_in_parallel_lose_nothing(store):
    def write(part):
        for start in range(0, 200, 20):
            store.add_exposures([exposure(f"{part}-{start + number}", "u") for number in range(20)])

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(write, range(6)))
    assert count(store, exposures) == 1200


@pytest.mark.parametrize("value", [math.nan, math.inf, True])
def test_a_value_that_is_no_number_is_refused(value):
    with pytest.raises(ValueError, match="finite"):
        outcome("r1", value)


def test_a_bad_row_refuses_the_whole_batch(store):
    with pytest.raises(ValueError, match="exposures: no column colour"):
        store.add_exposures([exposure("r1", "u"), exposure("r2", "u", colour="red")])
    with pytest.raises(ValueError, match="unit: missing"):
        store.add_exposures([exposure("r1", "u"), exposure("r2", None)])
    with pytest.raises(ValueError, match="finite"):
        store.add_outcomes([{**outcome("r1", 1.0), "value": math.nan}])
    assert count(store, exposures) == count(store, outcomes) == 0


def test_text_of_any_kind_is_data_and_never_sql(store):
    unit = "Robert'); DROP TABLE exposures;-- 用户 🚀"
    store.add_exposures([exposure("r1", unit)])
    assert count(store, exposures) == 1
    with store.engine.connect() as connection:
        assert connection.execute(exposures.select()).mappings().one()["unit"] == unit


def test_a_row_that_the_database_cannot_keep_is_a_value_error_and_writes_nothing(store):
    wrong = [exposure("r2", "u", arm="x" * 40), exposure("r3", "a\0b")]
    if store.engine.dialect.name == "sqlite":  # which keeps any text
        wrong = [{**exposure("r2", "u"), "completion_tokens": 2**70}]
    for row in wrong:
        with pytest.raises(ValueError, match="cannot keep"):
            store.add_exposures([exposure("r1", "u"), row])
    assert count(store, exposures) == 0


def test_services_keep_their_state_when_their_configuration_changes(store):
    assert store.put_service("svc", {"a": 1}, now=1.0)
    store.put_state("svc", {"phase": "serving"})
    assert not store.put_service("svc", {"a": 1}, now=2.0)
    assert store.services()["svc"]["updated_at"] == 2.0
    assert store.put_service("svc", {"a": 2}, now=3.0)
    row = store.services()["svc"]
    assert row["config"] == {"a": 2}
    assert row["state"] == {"phase": "serving"}
    assert (row["created_at"], row["updated_at"]) == (1.0, 3.0)


def test_a_service_keeps_its_address_whoever_else_comes_and_goes(store):
    for name in ("first", "second", "third"):
        store.put_service(name, {}, now=1.0)
    prefixes = {name: row["route_prefix"] for name, row in store.services().items()}
    assert prefixes == {"first": "/", "second": "/second", "third": "/third"}
    assert store.ask_delete("first", now=2.0)
    store.remove_service("first", deleted_at=2.0)
    store.put_service("second", {"a": 1}, now=3.0)
    assert {name: row["route_prefix"] for name, row in store.services().items()} == {
        "second": "/second",
        "third": "/third",
    }
    store.put_service("fourth", {}, now=4.0)
    assert store.services()["fourth"]["route_prefix"] == "/"


def test_only_a_service_that_is_still_marked_is_removed_and_its_replicas_with_it(store):
    assert not store.ask_delete("svc", now=1.0)
    store.put_service("svc", {}, now=1.0)
    row = {"replica_id": "a", "app": "svc", "service": "svc", "revision": "x", "loaded": {}, "at": 1.0}
    store.put_replica(row)
    assert store.ask_delete("svc", now=2.0)
    assert store.ask_delete("svc", now=3.0)  # the first wish counts
    assert store.services()["svc"]["deleted_at"] == 2.0
    store.put_service("svc", {}, now=4.0)
    store.remove_service("svc", deleted_at=2.0)
    assert store.services()["svc"]["deleted_at"] is None
    store.ask_delete("svc", now=5.0)
    store.remove_service("svc", deleted_at=5.0)
    assert store.services() == {}
    assert store.replicas("svc") == []


def test_replicas_are_replaced_and_forgotten(store):
    row = {
        "replica_id": "a",
        "app": "svc",
        "service": "svc",
        "revision": "x",
        "loaded": {"1": "ready"},
        "at": 1.0,
    }
    store.put_replica(row)
    store.put_replica({**row, "revision": "y", "at": 2.0})
    store.put_replica({**row, "replica_id": "b", "at": 9.0})
    assert [each["revision"] for each in store.replicas("svc")] == ["y", "x"]
    store.forget_replicas(before=5.0)
    assert [each["replica_id"] for each in store.replicas("svc")] == ["b"]


def test_a_trial_is_opened_decided_and_closed_once(store):
    made = trial()
    store.open_trial(made)
    store.open_trial(trial())
    assert store.latest_trial("svc") == made
    store.mark_step("svc-1", "alias:champion")
    store.mark_step("svc-1", "alias:champion")
    assert store.latest_trial("svc").steps == ("alias:champion",)

    judgement = Judgement("promote", "better", 1.0, 1.0, UNDEFINED, UNDEFINED)
    evidence = Evidence(20.0, (ArmEvidence.empty("champion", "1"), ArmEvidence.empty("challenger", "2")))
    decision = Decision("svc-1", "svc-1", "svc", "promote", "better", "me", evidence, judgement, 20.0)
    store.decide(decision)
    store.decide(Decision("svc-1", "svc-1", "svc", "roll_back", "worse", "me", evidence, judgement, 30.0))
    assert store.decision("svc-1").to_json() == decision.to_json()
    assert store.decision("svc-2") is None
    late = replace(made, table=replace(made.table, coverage=0.5))
    store.change_trial(late, Look("svc-1", 9, 20.0, {}, judgement))  # by a controller that no longer leads
    assert store.latest_trial("svc").table == made.table  # as it was judged
    assert store.looks("svc-1") == []
    store.close_trial(decision)
    closed = store.latest_trial("svc")
    assert (closed.state, closed.verdict, closed.closed_at) == ("closed", "promote", 20.0)
    store.open_trial(trial(2))
    assert store.latest_trial("svc").id == "svc-2"


def test_no_trial_opens_beside_one_of_another_service_that_shares_its_part_of_a_namespace(store):
    def part(service, start, end, number=1):
        made = trial(number, service)
        return replace(made, table=replace(made.table, namespace=Namespace("home", start, end)))

    store.open_trial(part("first", 0.0, 0.5))
    store.open_trial(part("second", 0.4, 1.0))
    assert store.latest_trial("second") is None
    store.open_trial(part("third", 0.5, 1.0))
    store.open_trial(trial(1, "fourth"))
    assert (store.latest_trial("third").id, store.latest_trial("fourth").id) == ("third-1", "fourth-1")
    with store.engine.begin() as connection:
        connection.execute(trials.update().values(state="closed"))
    store.open_trial(part("second", 0.4, 1.0))
    assert store.latest_trial("second").id == "second-1"


def test_a_persons_stop_and_a_verdict_at_the_same_moment_end_a_trial_by_one_of_them(store):
    store.open_trial(trial())
    judgement = Judgement("promote", "better", 1.0, 1.0, UNDEFINED, UNDEFINED)
    evidence = Evidence(20.0, (ArmEvidence.empty("champion", "1"), ArmEvidence.empty("challenger", "2")))
    promote = Decision(
        "svc-1", "svc-1", "svc", "promote", "better", "me", evidence, judgement, 20.0, "judgement"
    )
    look = Look("svc-1", 9, 20.0, {}, judgement)
    assert store.ask_stop("svc-1", Stop("anna", "enough"))
    assert not store.ask_stop("svc-1", Stop("ben", "too late"))
    store.decide(promote, look)  # planned before the wish was there
    assert store.decision("svc-1") is None
    assert store.looks("svc-1") == []
    store.decide(replace(promote, verdict="inconclusive", reason="stopped: enough", cause="person"), look)
    assert store.decision("svc-1").verdict == "inconclusive"
    assert [each.units for each in store.looks("svc-1")] == [9]

    store.open_trial(trial(2))
    store.decide(replace(promote, id="svc-2", trial_id="svc-2"))
    assert not store.ask_stop("svc-2", Stop("anna", "enough"))  # it ends already
    assert store.latest_trial("svc").stop is None


def test_a_planned_look_takes_the_place_of_another_at_its_units_and_of_nothing_else(store):
    store.open_trial(trial())
    judgement = Judgement(None, "waits", 1.0, 1.0, UNDEFINED, UNDEFINED)
    for at, number in ((1.0, None), (2.0, 1), (3.0, None)):
        store.add_look(Look("svc-1", 9, at, {}, replace(judgement, look=number)))
        store.add_look(Look("svc-1", 8, at, {}, judgement))
    assert [(each.units, each.at) for each in store.looks("svc-1")] == [(8, 1.0), (9, 2.0)]
    store.add_look(Look("svc-1", 12, 4.0, {}, replace(judgement, look=2), planned_units=14))
    assert store.evidence(trial(), now=5.0).looks == (9, 14)
    # An arm has left, nobody came since: alpha spent at the second look must not be spent once more.
    store.add_look(Look("svc-1", 12, 5.0, {}, replace(judgement, look=3), planned_units=20))
    assert store.evidence(trial(), now=6.0).looks == (9, 14)


def test_steps_that_are_noted_at_the_same_moment_are_all_kept(store):
    store.open_trial(trial())
    steps = [f"alias:{number}" for number in range(24)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda step: store.mark_step("svc-1", step), steps))
    assert sorted(store.latest_trial("svc").steps) == sorted(steps)


def test_a_lease_has_one_holder_until_it_runs_out_or_is_given_back(store):
    def take(holder, now):
        return store.take_lease("controller", holder, now=now, lasts_s=20)

    assert take("a", 100) == "a"
    assert take("b", 119) == "a"
    assert take("a", 119) == "a"  # renewed: it lasts until 139
    assert take("b", 138) == "a"
    assert take("b", 139) == "b"
    assert take("a", 140) == "b"
    store.give_back_lease("controller", "a")
    assert take("a", 141) == "b"
    store.give_back_lease("controller", "b")
    assert take("a", 142) == "a"


def test_of_many_that_reach_for_a_lease_at_once_one_gets_it(store):
    def reach(holder):
        return store.take_lease("controller", holder, now=100, lasts_s=20)

    with ThreadPoolExecutor(8) as pool:
        found = set(pool.map(reach, (f"holder-{number}" for number in range(16))))
    assert len(found) == 1


def test_tables_of_a_newer_seatrial_are_refused_in_one_line(store):
    with store.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(UserError, match="9999") as error:
        store.migrate()
    assert "\n" not in str(error.value)


def test_looks_are_kept_by_number_of_units(store):
    store.open_trial(trial())
    judgement = Judgement(None, "wait", 1.0, 1.0, UNDEFINED, UNDEFINED)
    for units in (20, 10, 20):
        store.add_look(Look("svc-1", units, 1.0, {"champion": units}, judgement))
    assert [look.units for look in store.looks("svc-1")] == [10, 20]
    assert store.looks("svc-1")[0].exposures == {"champion": 10}
    assert (store.last_look_units("svc-1"), store.last_look_units("svc-9")) == (20, 0)


def test_evidence_is_grouped_by_unit_and_by_the_assigned_arm(store):
    store.add_exposures(
        [
            exposure("r1", "ann"),
            exposure("r2", "ann"),
            exposure("r3", "bob"),
            exposure("r4", "cat", "challenger", fallback=True),
            exposure("r5", "dan", "challenger", status=500, error="boom"),
            exposure("r6", "dan", "challenger", status=499, error="client disconnected"),
            exposure("r7", "eve", "challenger", status=200, error="stream cut"),
            exposure("r8", "fay", trial_id="svc-2"),
        ]
    )
    values = {"r1": 1.0, "r2": 0.0, "r4": 1.0, "r5": 1.0, "r8": 1.0, "unknown": 1.0}
    store.add_outcomes([outcome(request_id, value) for request_id, value in values.items()])
    store.add_outcomes([outcome("r3", 1.0, metric="other"), outcome("r3", 7.0)])
    found = store.evidence(trial(), now=5.0)
    assert found.taken_at == 5.0
    assert found.ignored_outcomes == 1
    assert tuple(replace(arm, metrics={}) for arm in found.arms) == (
        ArmEvidence("champion", "1", 2, 2, 3, 3, 0, 0, 2, ArmStats(2, 0.5, 0.25)),
        ArmEvidence("challenger", "2", 3, 1, 4, 1, 2, 1, 1, ArmStats(1, 1.0, 1.0), unanswered=2.5),
    )


def test_a_missing_outcome_is_zero_or_left_out_as_the_metric_says(store):
    store.add_exposures([exposure("r1", "ann"), exposure("r2", "bob"), exposure("r3", "bob")])
    store.add_outcomes([outcome("r2", 4.0)])
    rule = {"type": "mean", "missing": "zero"}
    assert store.evidence(trial(metric=rule), now=1.0).arm("champion").stats == ArmStats(2, 2.0, 4.0)
    rule = {"type": "mean", "missing": "exclude"}
    assert store.evidence(trial(metric=rule), now=1.0).arm("champion").stats == ArmStats(1, 4.0, 16.0)


def test_a_trial_that_nobody_was_in_has_empty_evidence(store):
    assert store.evidence(trial(), now=1.0).units == 0


@pytest.mark.parametrize("url", ["mysql://root@h/d", "nonsense", "sqlite://", "oracle://h"])
def test_another_kind_of_database_is_refused_in_one_line(url):
    with pytest.raises(UserError, match="SEATRIAL_STORE_URL") as error:
        Store(url)
    assert "\n" not in str(error.value)


def test_a_database_without_tables_says_who_makes_them(store_url: str):
    found = Store(store_url)
    with pytest.raises(RetryableError, match="the controller makes the tables: run `seatrial up`"):
        found.services()
    found.close()


def test_a_database_that_is_away_is_worth_another_try():
    store = Store("postgresql+psycopg://nobody:secret@127.0.0.1:9/none")
    with pytest.raises(RetryableError, match="store:") as error:
        store.services()
    assert "secret" not in str(error.value)
    store.close()


WRITER = """
import sys
from seatrial.store import Store, outcome_row
store = Store(sys.argv[1])
for number in range(100_000):
    store.add_outcomes([outcome_row("svc", f"r{number}", "resolved", 1.0, now=1.0)])
    print(number, flush=True)
"""


@pytest.mark.slow
def test_what_was_acknowledged_survives_a_kill(tmp_path: Path):
    url = f"sqlite:///{tmp_path / 'store.db'}"
    store = Store(url)
    store.migrate()
    writer = subprocess.Popen([sys.executable, "-c", WRITER, url], stdout=subprocess.PIPE, text=True)
    assert writer.stdout is not None
    acknowledged = [int(writer.stdout.readline()) for _ in range(50)]
    os.kill(writer.pid, signal.SIGKILL)
    acknowledged += [int(line) for line in writer.stdout.read().split()]
    writer.wait(10)
    writer.stdout.close()
    assert count(store, outcomes) >= len(acknowledged)
    store.close()


def test_a_trials_latest_answers_are_found_without_sorting_all_of_them(store):
    indexes = inspect(store.engine).get_indexes("exposures")
    assert ["trial_id", "at"] in [index["column_names"] for index in indexes]
