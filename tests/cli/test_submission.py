"""Jobs as they are handed to Ray, and what is read from their logs."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from seatrial.config.addresses import Addresses
from seatrial.config.jobs import JobsConfig
from seatrial.errors import UserError
from seatrial.submission import plan
from seatrial.submission.causes import Finish, Next, diagnose
from seatrial.submission.events import Event, Lines, parse
from seatrial.submission.follow import Ending, JobFailedError, may_be_tried_again, require_success
from seatrial.submission.submit import is_same_machine, make_job, submission_id


def test_a_submission_id_can_be_read_out_and_is_never_the_same() -> None:
    now = time.mktime((2026, 11, 23, 23, 15, 0, 0, 0, -1))
    first, second = submission_id("lora-tiny", now), submission_id("lora-tiny", now)
    assert first.startswith("lora-tiny-20261123-2315-")
    assert first != second


def test_on_the_same_machine_the_job_runs_in_our_folder(tmp_path: Path) -> None:
    folder = tmp_path / "a b"
    folder.mkdir()
    job = make_job("m.train", folder / "r.yaml", "x", folder=folder, upload=False, force=True, now=0.0)
    assert job.entrypoint.startswith(f"cd '{folder}' && exec ")
    assert job.entrypoint.endswith(f"-m m.train '{folder}/r.yaml' --force")
    assert job.runtime_env == {}


def test_for_another_machine_the_folder_travels(tmp_path: Path) -> None:
    job = make_job("m.train", tmp_path / "recipes/r.yaml", "x", folder=tmp_path, upload=True, now=0.0)
    assert job.entrypoint == "python -m m.train recipes/r.yaml"
    assert job.runtime_env == {"working_dir": str(tmp_path), "excludes": [".seatrial"]}


def test_a_recipe_outside_of_what_travels_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="outside of"):
        make_job("m", tmp_path / "r.yaml", "x", folder=tmp_path / "below", upload=True, now=0.0)


def test_only_the_recorded_stack_on_loopback_is_this_machine(tmp_path: Path) -> None:
    assert not is_same_machine(Addresses.resolve({}, tmp_path))
    assert not is_same_machine(Addresses.resolve({"RAY_API_SERVER_ADDRESS": "http://ray:8265"}, tmp_path))


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ('::seatrial:: {"event":"done"}', Event("done")),
        ('(RayTrainWorker pid=7) ::seatrial:: {"event":"progress","step":3}', Event("progress", {"step": 3})),
        ("::seatrial:: {broken", "::seatrial:: {broken"),
        ('::seatrial:: {"no":"event"}', '::seatrial:: {"no":"event"}'),
        ("step 1/2 loss 3", "step 1/2 loss 3"),
    ],
)
def test_events_are_told_from_lines(line: str, expected: Event | str) -> None:
    assert parse(line) == expected


def test_chunks_become_whole_lines() -> None:
    lines = Lines()
    assert list(lines.feed("one\ntw")) == ["one"]
    assert list(lines.feed("o\r\n\nthr")) == ["two", ""]
    assert list(lines.flush()) == ["thr"]
    assert list(lines.flush()) == []


@pytest.mark.parametrize(
    ("status", "code", "expected"),
    [
        ("FAILED", None, True),  # the driver was lost
        ("FAILED", 137, True),  # killed
        ("FAILED", -9, True),
        ("FAILED", 75, True),  # a dependency did not answer
        ("FAILED", 2, False),  # bad input stays bad
        ("FAILED", 1, False),
        ("STOPPED", None, False),  # a person wanted that
        ("SUCCEEDED", 0, False),
    ],
)
def test_what_may_be_tried_again(status: str, code: int | None, expected: bool) -> None:
    assert may_be_tried_again(ending(status, code)) is expected


def test_a_failed_job_passes_its_exit_code_on() -> None:
    require_success("x", ending("SUCCEEDED", 0))
    for code, expected in ((2, 2), (None, 1), (-9, 1)):
        with pytest.raises(JobFailedError, match=r"x: .*\(next: .*seatrial train r\.yaml\)") as caught:
            require_success("x", ending("FAILED", code))
        assert caught.value.exit_code == expected


def ending(status: str, code: int | None) -> Ending:
    finish = Finish(status, code, lines=("why",))
    return Ending(status, code, diagnose(finish, Next.in_ray("x", "r.yaml")))


def test_a_plan_reads_well() -> None:
    rows = plan.rows(
        {"rows_read": 5000, "rows_kept": 4990, "heldout": 250, "tokens": 1234567, "steps": 400,
         "batch_tokens": 4096, "workers": 2, "device": "gpu", "parameters": 3000000, "estimated_s": 245.0,
         "gpu_hours": 0.136, "gpu_tflops": 125.0,
         "memory": {"weights": 6 * 2**20, "gradients": 2**20, "optimizer": 2**21, "activations": 3 * 2**30,
                    "checkpoint": 0},
         "host_memory": 3 * 2**20},
        JobsConfig(gpu_hour_price=2.0),
    )  # fmt: skip
    assert rows == [
        ("data", "4,990 of 5,000 rows kept, 250 held out"),
        ("tokens", "1,234,567 in the packed data"),
        ("steps", "400 of 4,096 tokens"),
        ("workers", "2 on gpu"),
        ("parameters", "3,000,000"),
        (
            "memory",
            "3.0 GiB for each worker: "
            "weights 6.0 MiB, gradients 1.0 MiB, optimizer 2.0 MiB, activations 3.0 GiB",
        ),
        ("host memory", "3.0 MiB for each worker's checkpoints"),
        ("estimated", "4 min 5 s, at 125 TFLOP/s for each GPU (jobs.yaml: gpu_tflops)"),
        ("GPU-hours", "0.14, 0.27 EUR"),
    ]


@pytest.mark.parametrize(
    ("seconds", "expected"), [(0.4, "0 s"), (59.4, "59 s"), (61, "1 min 1 s"), (7500, "2 h 5 min")]
)
def test_durations_read_well(seconds: float, expected: str) -> None:
    assert plan.duration(seconds) == expected
