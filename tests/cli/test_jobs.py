"""`seatrial jobs` as a person sees it, over a store without a controller."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from seatrial.cli import main as cli
from seatrial.store import Store
from seatrial.store.job import Attempt, Cause, Job, Need, Spec

KILLED = Cause("killed", "its driver was killed", "it resumes: seatrial jobs retry lora-1", True)


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    url = f"sqlite:///{tmp_path / 'store.db'}"
    monkeypatch.setenv("SEATRIAL_HOME", str(tmp_path))
    monkeypatch.setenv("SEATRIAL_STORE_URL", url)
    monkeypatch.setenv("SEATRIAL_CONTROLLER_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://127.0.0.1:9")
    made = Store(url)
    made.migrate()
    return made


def add(store: Store, job_id: str, **values: object) -> Job:
    spec = Spec("run", "run", recipe="recipe.yaml")
    given = {"digest": job_id, "name": "lora", "team": "support", "priority": 0, "ready_at": 0.0, **values}
    job = Job(id=job_id, spec=spec, need=Need(2, 1.0, 1.0), submitted_at=time.time() - 300, **given)  # type: ignore[arg-type]
    store.add_job(job)
    return job


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = cli.main(["jobs", *arguments])
    said = capsys.readouterr()
    return code, said.out, said.err


def test_an_empty_queue_says_how_to_fill_it(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "list") == (0, "no jobs: `seatrial train RECIPE` submits one\n", "")


def test_the_list_says_of_each_job_what_it_waits_for_made_or_failed_of(
    store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    add(store, "lora-1", state="failed", cause=KILLED, attempt=1)
    add(store, "lora-2", state="succeeded", result={"version": "models:/chat/4"})
    add(store, "lora-3", message="room: asks for 2 x (1 CPU, 1 GPU)", priority=5)
    add(store, "nightly", state="scheduled", cron="0 3 * * *", ready_at=10_800.0)
    add(store, "lora-4", state="running", wants_stop=True)
    code, out, _ = run(capsys, "list")
    rows = {line.split("\t")[0]: line.split("\t")[1:] for line in out.splitlines() if "\t" in line}
    assert code == 0
    assert rows["lora-1"] == ["failed", "support", "0", "2", "5 min", "-", "killed: its driver was killed"]
    assert rows["lora-2"][-1] == "models:/chat/4"
    assert rows["lora-3"] == [
        "queued",
        "support",
        "5",
        "1",
        "5 min",
        "-",
        "room: asks for 2 x (1 CPU, 1 GPU)",
    ]
    assert rows["nightly"][-1] == "0 3 * * *, next 1970-01-01 03:00 UTC"
    assert rows["lora-4"][-1] == "stopping"
    assert out.splitlines()[-1] == "no controller answers, so nothing starts: see `seatrial status`"


def test_one_job_is_shown_with_its_cause_its_next_command_and_what_it_used(
    store: Store, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "jobs.yaml").write_text("gpu_hour_price: 2.5\n")
    job = add(store, "lora-1", state="failed", cause=KILLED, result={"run": "http://m/#/runs/1"})
    for number in range(2):
        attempt = Attempt("lora-1", number, "support", 2.0, 0.0, 1800.0, "FAILED", "its driver was killed")
        store.begin_attempt(job, job, attempt)
    code, out, _ = run(capsys, "show", "lor")
    lines = dict(line.split("  ", 1) for line in out.splitlines() if "  " in line and "\t" not in line)
    shown = {name: value.strip() for name, value in lines.items()}
    assert code == 0
    assert shown["cause"] == "killed: its driver was killed"
    assert shown["next"] == "it resumes: seatrial jobs retry lora-1"
    assert shown["asks for"] == "2 x (1 CPU, 1 GPU)"
    assert shown["run"] == "http://m/#/runs/1"
    assert shown["GPU-hours"] == "2.00, 5.00 EUR"
    assert out.splitlines()[-1].split("\t") == [
        *("lora-1-r1", "failed", "1970-01-01 00:00 UTC", "30 min 0 s", "2", "its driver was killed")
    ]
    found = json.loads(run(capsys, "show", "lora-1", "--json")[1])
    assert (found["state"], len(found["attempts"])) == ("failed", 2)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["show", "none"], "JOB: none: no such job: see `seatrial jobs list`"),
        (["show", "lora"], "JOB: lora: several begin so (lora-2, lora-1): give more of it"),
        (["retry", "lora-2"], "JOB: lora-2: has succeeded: `seatrial train RECIPE --force` submits another"),
        (["retry", "lora-1"], "JOB: lora-1: is queued: `seatrial jobs logs -f lora-1` follows it"),
        (["logs", "nightly"], "JOB: nightly: is a schedule, which says nothing: give one of its jobs"),
        (["submit", "--env", "X", "--", "true"], "--env: X: give NAME=VALUE"),
        (["submit", "--name", "a/b", "--", "true"], "--name: 'a/b': give up to 63 of a-z, 0-9 and -"),
        (["submit", "--team", "A team", "--", "true"], "--team: 'A team': give up to 63 of a-z, 0-9 and -"),
        (["submit", "--time-limit", "inf", "--", "true"], "Invalid value for '--time-limit': inf: give a"),
        (["submit", "--gpus", "inf", "--", "true"], "Invalid value for '--gpus': inf: give a finite"),
        (["submit", "--after", "none", "--", "true"], "--after: none: no such job: see `seatrial jobs list`"),
        (["submit", "--cron", "0 3 * *", "--", "true"], "--cron: 0 3 * *: give five fields"),
    ],
)
def test_what_cannot_be_done_is_one_line(
    store: Store, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    add(store, "lora-1")
    add(store, "lora-2", state="succeeded")
    add(store, "nightly", state="scheduled", cron="0 3 * * *")
    code, _, err = run(capsys, *arguments)
    assert code == 2
    assert err.startswith(said)
    assert len(err.splitlines()) == 1


def test_stopping_and_retrying_are_kept_until_a_controller_answers(
    store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    add(store, "lora-1")
    add(store, "lora-2", state="failed", cause=KILLED)
    assert "as soon as a controller answers" in run(capsys, "stop", "lora-1")[1]
    assert run(capsys, "stop", "lora-2")[1] == "lora-2: failed already\n"
    _, out, _ = run(capsys, "retry", "lora-2", "--detach", "--time-limit", "2")
    assert out.splitlines() == [
        "queued     lora-2 again, as attempt lora-2-r1",
        "follow     seatrial jobs logs -f lora-2",
    ]
    first, second = store.job("lora-1"), store.job("lora-2")
    assert first is not None
    assert second is not None
    assert (first.wants_stop, second.state, second.time_limit_s) == (True, "queued", 7200.0)


def test_a_schedule_that_was_stopped_is_taken_up_again(
    store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    add(store, "nightly", state="stopped", cron="0 3 * * *")
    out = run(capsys, "retry", "nightly")[1]
    assert out.startswith("scheduled  nightly again  next ")
    found = store.job("nightly")
    assert found is not None
    assert (found.state, found.ready_at % 86_400) == ("scheduled", 10_800.0)


def test_a_secret_in_a_command_is_refused_and_nothing_is_queued(
    store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = run(capsys, "submit", "--detach", "--", "python", "x.py", "--password=hunter2")
    assert code == 2
    assert "hunter2" not in err
    assert store.latest_jobs() == []
