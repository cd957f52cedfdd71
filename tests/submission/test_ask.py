"""The same work is one job: attached to, found again, queued again, or made anew on request."""

from __future__ import annotations

import io
import zipfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from seatrial.config.recipe import TrainRecipe
from seatrial.config.tune import TuneRecipe
from seatrial.errors import UserError
from seatrial.store import Store
from seatrial.store.job import Job, Need
from seatrial.submission import ask
from seatrial.submission.package import pack

DIGESTS = {"code": "c", "config": "k", "data": "d"}


def recipe(**values: object) -> TrainRecipe:
    return TrainRecipe.model_validate(
        {
            "name": "lora",
            "service": "chat",
            "data": {"train": "x.jsonl"},
            "model": {"base": "./b"},
            "method": {"type": "lora"},
            "run": {"steps": 1},
            **values,
        }
    )


def wanted(
    tmp_path: Path, *, force: bool = False, digests=DIGESTS, wishes=None, package=None, **values
) -> Job:
    return ask.of_recipe(
        recipe(**values),
        "m.train",
        tmp_path / "r.yaml",
        digests,
        wishes or ask.Wishes("default"),
        folder=tmp_path,
        package=package,
        force=force,
        now=5.0,
    )


def test_a_search_asks_for_room_for_the_trials_that_must_run_together_and_counts_those_that_may(
    tmp_path: Path,
) -> None:
    rates = {"run.learning_rate": {"type": "log_uniform", "low": 1e-4, "high": 1e-2}}

    def need(**search: object) -> tuple[int, int | None]:
        made = TuneRecipe.model_validate(
            recipe(run={"steps": 20, "batch_rows": 8}, resources={"workers": 2, "device": "gpu"}).model_dump()
            | {"search": {"space": rates, "trials": 4, **search}}
        )
        file, wishes = tmp_path / "r.yaml", ask.Wishes("default")
        job = ask.of_recipe(
            made, "m.tune", file, DIGESTS, wishes, folder=tmp_path, package=None, force=False, now=0.0
        )
        assert job.need.gpus == 1.0
        return job.need.workers, job.need.most

    assert need() == (2, 8)
    assert need(max_concurrent=3) == (2, 6)
    assert need(scheduler={"type": "pbt", "interval_steps": 10}) == (8, 8)


def test_the_same_code_configuration_and_data_are_the_same_job(store: Store, tmp_path: Path) -> None:
    first = ask.place(store, wanted(tmp_path), force=False)
    assert first.how == "queued"
    assert first.job.id.startswith("lora-")
    assert ask.place(store, wanted(tmp_path), force=False) == ask.Placed(first.job, "attached")
    for part in DIGESTS:
        other = wanted(tmp_path, digests={**DIGESTS, part: "other"})
        assert ask.place(store, other, force=False).how == "queued"
    env = wanted(tmp_path, wishes=ask.Wishes("default", env={"A": "1"}))
    assert ask.place(store, env, force=False).how == "queued"
    assert ask.place(store, wanted(tmp_path, package="p"), force=False).how == "queued"
    wishes = ask.Wishes("other-team", priority=9, retries=4)
    assert ask.place(store, wanted(tmp_path, wishes=wishes), force=False).how == "attached"


@pytest.mark.parametrize(
    ("state", "how"),
    [
        ("running", "attached"),
        ("succeeded", "finished before"),
        ("failed", "queued again"),
        ("stopped", "queued again"),
    ],
)
def test_what_becomes_of_a_second_request(store: Store, tmp_path: Path, state: str, how: str) -> None:
    first = ask.place(store, wanted(tmp_path), force=False).job
    store.change_job(first, replace(first, state=state))  # type: ignore[arg-type]
    again = ask.place(store, wanted(tmp_path, wishes=ask.Wishes("default", priority=7)), force=False)
    assert (again.how, again.job.id) == (how, first.id)
    if how == "queued again":
        assert (again.job.state, again.job.ray_id, again.job.priority) == ("queued", f"{first.id}-r1", 7)


def test_force_makes_another_each_time_whose_retries_do_not_start_from_nothing(
    store: Store, tmp_path: Path
) -> None:
    first = ask.place(store, wanted(tmp_path), force=False).job
    forced = [ask.place(store, wanted(tmp_path, force=True), force=True).job for _ in range(2)]
    assert [job.id for job in forced] == [f"{first.id}-f1", f"{first.id}-f2"]
    assert forced[0].spec.entrypoint.endswith(" --force")
    assert not forced[0].spec.retry_entrypoint.endswith(" --force")


def test_many_at_once_make_one_job(store: Store, tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        placed = list(pool.map(lambda _: ask.place(store, wanted(tmp_path), force=False), range(16)))
    assert sum(each.how == "queued" for each in placed) == 1
    assert len(store.latest_jobs()) == 1


def test_a_job_after_one_that_is_not_there_is_refused(store: Store, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--after: nobody: no such job"):
        ask.place(store, wanted(tmp_path, wishes=ask.Wishes("default", after=("nobody",))), force=False)
    assert store.latest_jobs() == []


def test_what_is_queued_again_at_the_same_moment_by_two_is_attached_to_by_the_second(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = ask.place(store, wanted(tmp_path), force=False).job
    store.change_job(first, replace(first, state="failed"))
    look = store.jobs_of_digest
    seen: list[list[Job]] = []

    def before_the_other(digest: str) -> list[Job]:
        found = look(digest)
        if not seen:
            store.queue_job_again(replace(first, priority=9), ready_at=5.0)
        seen.append(found)
        return found

    monkeypatch.setattr(store, "jobs_of_digest", before_the_other)
    placed = ask.place(store, wanted(tmp_path, wishes=ask.Wishes("default", priority=3)), force=False)
    assert (placed.how, placed.job.priority, placed.job.attempt) == ("attached", 9, 1)


def test_the_beginning_of_an_id_will_do_for_a_job_to_come_after(store: Store, tmp_path: Path) -> None:
    first = ask.place(store, wanted(tmp_path), force=False).job
    after = command(tmp_path, after=("lora-",))
    assert ask.place(store, after, force=False).job.after == (first.id,)
    ask.place(store, wanted(tmp_path, force=True), force=True)
    with pytest.raises(UserError, match=r"--after: lora-: several begin so"):
        ask.place(store, command(tmp_path, name="x", after=("lora-",)), force=True)
    with pytest.raises(UserError, match=r"--after: : no such job"):
        ask.place(store, command(tmp_path, name="x", after=("",)), force=True)


def test_a_schedule_is_another_job_than_the_work_that_it_repeats(store: Store, tmp_path: Path) -> None:
    daily = ask.Wishes("default", cron="0 3 * * *")
    schedule = ask.place(store, wanted(tmp_path, wishes=daily), force=False)
    assert (schedule.job.state, schedule.job.ready_at) == ("scheduled", 10_800.0)
    assert ask.place(store, wanted(tmp_path), force=False).how == "queued"
    assert ask.place(store, wanted(tmp_path, wishes=daily), force=False).how == "attached"


def test_a_schedule_that_was_stopped_is_one_again_whatever_its_jobs_came_to(
    store: Store, tmp_path: Path
) -> None:
    daily = ask.Wishes("default", cron="0 3 * * *")
    schedule = ask.place(store, wanted(tmp_path, wishes=daily), force=False).job
    store.add_job(replace(schedule, id=f"{schedule.id}-19700101-0300", cron=None, state="succeeded"))
    store.change_job(schedule, replace(schedule, state="stopped"))
    again = ask.place(store, wanted(tmp_path, wishes=daily), force=False)
    assert (again.how, again.job.id, again.job.state) == ("queued again", schedule.id, "scheduled")
    assert again.job.ready_at == 10_800.0


def command(tmp_path: Path, *, name: str = "job", team: str = "default", after=(), gpus: float = 0.0) -> Job:
    wishes = ask.Wishes(team, after=tuple(after))
    return ask.of_command(name, ["true"], Need(1, 1.0, gpus), wishes, folder=tmp_path, package=None, now=5.0)


def test_a_command_that_asked_for_too_much_is_queued_again_with_what_it_asks_for_now(
    store: Store, tmp_path: Path
) -> None:
    first = ask.place(store, command(tmp_path, gpus=8.0), force=False).job
    store.change_job(first, replace(first, state="failed"))
    assert ask.place(store, command(tmp_path, gpus=1.0), force=False).job.need == Need(1, 1.0, 1.0)


@pytest.mark.parametrize("name", ["", "A", "a/b", "../x", "a" * 64, "a\x1b[2J", "-a", "ä"])
def test_a_name_that_would_not_go_into_addresses_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match="--name: "):
        command(tmp_path, name=name)
    with pytest.raises(UserError, match="--team: ") as caught:
        command(tmp_path, team=name)
    assert "\x1b" not in str(caught.value)


def test_a_job_that_would_wait_for_itself_or_for_a_schedule_is_refused(store: Store, tmp_path: Path) -> None:
    first = ask.place(store, command(tmp_path), force=False).job
    then = replace(first, id="then", digest="then", after=(first.id,))
    assert store.add_job(then)
    store.change_job(first, replace(first, state="failed"))
    for other in (first.id, "then"):
        with pytest.raises(UserError, match=f"--after: {other}: comes after this job"):
            ask.place(store, command(tmp_path, after=(other,)), force=False)
    assert store.add_job(replace(then, id="nightly", state="scheduled", cron="@daily"))
    with pytest.raises(UserError, match="--after: nightly: is a schedule"):
        ask.place(store, command(tmp_path, after=("nightly",)), force=False)


def test_secrets_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"env\.HF_TOKEN: looks like a secret"):
        wanted(tmp_path, wishes=ask.Wishes("default", env={"HF_TOKEN": "x"}))
    run = {"steps": 1, "storage": "s3://id:key@host/bucket"}
    with pytest.raises(UserError, match=r"recipe\.run\.storage: looks like a password in a URL"):
        wanted(tmp_path, run=run)


def test_a_package_is_known_by_its_contents_and_leaves_out_what_git_ignores(tmp_path: Path) -> None:
    (tmp_path / ".gitignore").write_text("data/\n")
    (tmp_path / "r.yaml").write_text("a: 1\n")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "big.bin").write_bytes(b"x" * 1000)
    first = pack(tmp_path)
    (tmp_path / "data" / "big.bin").write_bytes(b"y" * 1000)
    (tmp_path / "r.yaml").touch()
    assert pack(tmp_path).digest == first.digest
    (tmp_path / "r.yaml").write_text("a: 2\n")
    assert pack(tmp_path).digest != first.digest


def test_neither_a_stacks_secrets_nor_environments_travel_and_its_store_makes_no_other_package(
    tmp_path: Path,
) -> None:
    (tmp_path / "r.yaml").write_text("a: 1\n")
    for name in (".seatrial/ray_token", ".git/config", ".venv/bin/x", "below/.seatrial/store.db"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    (tmp_path / ".venv" / "bin" / "python").symlink_to("/usr/bin/env")
    first = pack(tmp_path)
    with zipfile.ZipFile(io.BytesIO(first.body)) as archive:
        assert [name for name in archive.namelist() if not name.endswith("/")] == ["r.yaml"]
    (tmp_path / "below" / ".seatrial" / "store.db").write_text("a job more")
    assert pack(tmp_path).digest == first.digest


def test_a_link_out_of_the_folder_does_not_travel(tmp_path: Path) -> None:
    folder = tmp_path / "work"
    (folder / "inner").mkdir(parents=True)
    (tmp_path / "secret").write_text("x")
    (folder / "r.yaml").write_text("a: 1\n")
    (folder / "again.yaml").symlink_to("r.yaml")
    (folder / "nowhere").symlink_to("missing")
    pack(folder)
    for target in ("../../secret", "..", ".", "/"):
        (folder / "inner" / "link").symlink_to(target)
        with pytest.raises(UserError, match=r"inner/link: a link out of .*name it in \.gitignore"):
            pack(folder)
        (folder / ".gitignore").write_text("link\n")
        pack(folder)
        (folder / ".gitignore").unlink()
        (folder / "inner" / "link").unlink()


def test_a_folder_that_cannot_be_packed_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "x\udcff.txt").write_text("a name of some other encoding")
    with pytest.raises(
        UserError, match=r"--upload: .*: cannot be packed \(.*name what cannot travel"
    ) as caught:
        pack(tmp_path)
    assert str(caught.value).isprintable()


def test_a_folder_that_is_too_large_is_refused_before_it_is_packed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("seatrial.submission.package.LARGEST_UNPACKED_MB", 1)
    (tmp_path / "zeros.bin").write_bytes(bytes(2 * 2**20))  # a few kB as a zip file
    with pytest.raises(UserError, match=r"at most 64 travel with a job"):
        pack(tmp_path)


def test_a_folder_that_is_too_large_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("seatrial.submission.package.LARGEST_MB", 1)
    (tmp_path / "big.bin").write_bytes(bytes(range(256)) * 5000)
    with pytest.raises(UserError, match=r"at most 1 travel with a job: name data in \.gitignore"):
        pack(tmp_path)
