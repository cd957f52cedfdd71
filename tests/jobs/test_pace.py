"""When a job will have ended, from two steps and what is left."""

from __future__ import annotations

import pytest

from seatrial_jobs.follow import END_S, Pace


def test_steps_alone() -> None:
    pace = Pace(100)
    assert pace.eta_s((10, 50.0), (20, 60.0), 60.0) == 80.0 + END_S
    assert pace.eta_s((10, 50.0), (20, 60.0), 64.0) == 76.0 + END_S, "time goes on between two looks"
    assert pace.eta_s((10, 50.0), (10, 50.0), 51.0) is None
    assert pace.eta_s((0, 0.0), (100, 100.0), 200.0) == 0.0


def test_measurements_that_are_left_count_and_those_that_were_do_not_slow_the_steps() -> None:
    pace = Pace.of(100, 25, batch_rows=8, heldout_rows=120)  # each measurement takes as long as 5 steps
    assert pace.heldout_steps == pytest.approx(5.0)
    assert pace.work(0, 24) == 24
    assert pace.work(0, 25) == pytest.approx(30.0)
    assert pace.work(75, 100) == pytest.approx(30.0)  # the one at the end
    assert pace.work(0, 100) == pytest.approx(120.0)  # after 25, 50, 75 and at the end
    # 10 steps in 10 s, then 15 steps with one measurement in 20 s: 1 s a step both times
    assert pace.eta_s((0, 0.0), (10, 10.0), 10.0) == pytest.approx(110.0 + END_S)
    assert pace.eta_s((10, 10.0), (25, 30.0), 30.0) == pytest.approx(90.0 + END_S)


def test_the_submission_is_the_one_that_ray_names() -> None:
    from seatrial_jobs.job import submission_id

    given = '{"runtime_env": {}, "metadata": {"job_submission_id": "lora-1-r2", "job_name": "lora-1-r2"}}'
    assert submission_id({"RAY_JOB_CONFIG_JSON_ENV_VAR": given}) == "lora-1-r2"
    assert submission_id({}) is None
    assert submission_id({"RAY_JOB_CONFIG_JSON_ENV_VAR": "{"}) is None
