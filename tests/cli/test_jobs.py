"""`seatrial jobs` as a person sees it, over a store without a controller."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
import yaml

from seatrial.cli import main as cli
from seatrial.store import Store
from seatrial.store.job import Attempt, Cause, Job, Need, Spec
from tests.tiny import make_base

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
        (["submit", "--time-limit", "inf", "--", "true"], "Invalid value for '--time-limit': Input should"),
        (["submit", "--gpus", "inf", "--", "true"], "Invalid value for '--gpus': inf: give a finite"),
        (["submit", "--after", "none", "--", "true"], "--after: none: no such job: see `seatrial jobs list`"),
        (["submit", "--cron", "0 3 * *", "--", "true"], "--cron: 0 3 * *: give five fields"),
        (["submit", "--cron", "0," * 99 + "0 * * * *", "--", "true"], "--cron: 0,0,"),
        (["submit", "--time-limit", "1e306", "--", "true"], "Invalid value for '--time-limit': "),
        (["submit", "--", ""], "COMMAND: '': give a program first"),
        (["submit", "--", "python", "-m", "seatrial_jobs.tune", "none.yaml"], "none.yaml: cannot be read"),
        (["list", "--limit", "99999999999999999999"], "Invalid value for '--limit': "),
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


@pytest.fixture
def folder(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A search with its data and base, in the folder that jobs are submitted from."""
    made = tmp_path / "work"
    made.mkdir()
    make_base(made / "base", ["alpha beta gamma"] * 50)
    rows = [{"prompt": f"Join alpha, {n}", "response": "alpha beta"} for n in range(40)]
    (made / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    rates = {"run.learning_rate": {"type": "log_uniform", "low": 1e-4, "high": 1e-2}}
    scheduler = {"type": "pbt", "interval_steps": 10}
    recipe = {
        "name": "find-rate",
        "service": "chat",
        "data": {"train": "pairs.jsonl"},
        "model": {"base": "./base"},
        "method": {"type": "lora"},
        "run": {"steps": 20, "seq_tokens": 64, "batch_rows": 8},
        "resources": {"workers": 2, "device": "cpu", "cpus_per_worker": 0.5},
        "search": {"space": rates, "trials": 3, "scheduler": scheduler},
    }
    (made / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    monkeypatch.chdir(made)
    return made


SEARCH = ("--", "python", "-m", "seatrial_jobs.tune", "recipe.yaml")


def test_a_search_that_is_submitted_as_a_command_asks_for_what_its_recipe_says_and_is_known_again(
    store: Store, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(capsys, "submit", "--detach", "--no-upload", *SEARCH)[1].startswith("queued     find-rate-")
    (job,) = store.latest_jobs()
    assert (job.need.workers, job.need.cpus, job.need.gpus) == (6, 0.5, 0.0), (
        "a population of three, two each"
    )
    assert job.spec.recipe == "recipe.yaml"
    assert "attached   find-rate-" in run(capsys, "submit", "--detach", "--no-upload", *SEARCH)[1]
    (folder / "pairs.jsonl").write_text((folder / "pairs.jsonl").read_text().replace("gamma", "beta") * 2)
    by_hand = ("--workers", "1", "--cpus", "2", "--name", "mine")
    out = run(capsys, "submit", "--detach", "--no-upload", *by_hand, *SEARCH, "--force")[1]
    newest = store.jobs_like("mine-")[0]
    assert out.startswith(f"queued     {newest.id}\n"), "its data are others"
    assert newest.digest != job.digest
    assert (newest.need.workers, newest.need.cpus) == (1, 2.0)
    assert newest.spec.entrypoint.endswith("recipe.yaml --force")
    assert not newest.spec.retry_entrypoint.endswith("--force"), "a retry goes on"


def test_a_search_that_travels_asks_for_what_its_recipe_says_wherever_its_data_are(
    store: Store, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "pairs.jsonl").unlink()
    assert run(capsys, "submit", "--detach", "--upload", *SEARCH)[1].startswith("queued     find-rate-")
    (job,) = store.latest_jobs()
    assert (job.need.workers, job.spec.entrypoint) == (6, "python -m seatrial_jobs.tune recipe.yaml")
    elsewhere = ("--", "python", "-m", "seatrial_jobs.tune", "/shared/recipe.yaml")
    assert run(capsys, "submit", "--detach", "--upload", *elsewhere)[1].startswith("queued     job-")


def test_a_changed_script_is_other_work(
    store: Store, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ("submit", "--detach", "--no-upload", "--", "python", "x.py", "--out=y")
    (folder / "x.py").write_text("print(1)")
    assert run(capsys, *command)[1].startswith("queued ")
    assert run(capsys, *command)[1].startswith("attached ")
    (folder / "x.py").write_text("print(2)")
    assert run(capsys, *command)[1].startswith("queued ")


def test_a_team_that_is_not_the_operators_is_refused_at_once(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "jobs.yaml").write_text("teams: {support: {}, research: {}}")
    code, _, err = run(capsys, "submit", "--detach", "--team", "sales", "--", "true")
    assert (code, err) == (2, "--team: sales: not in jobs.yaml: give one of research, support\n")
    assert store.latest_jobs() == []


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
