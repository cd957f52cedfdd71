"""Schedules over simulated time: one job for each time, none twice, and what is made up for."""

from __future__ import annotations

from dataclasses import replace

from simulated import World

from seatrial.submission import ask
from seatrial.submission.cron import Cron


def test_a_schedule_queues_one_job_for_each_time_and_none_twice(world: World) -> None:
    hourly = Cron.parse("0 * * * *")
    world.add("nightly", cron="0 * * * *", state="scheduled")
    schedule = world.job("nightly")
    world.store.change_job(
        schedule, type(schedule)(**{**vars(schedule), "ready_at": hourly.after(world.now)})
    )
    world.tick(60.0, times=200)  # 3 hours and 20 minutes from 00:16:40
    assert list(world.ray.known) == [f"nightly-19700101-0{hour}00" for hour in (1, 2, 3)]
    assert world.state("nightly") == "scheduled"


def test_a_schedule_makes_up_for_the_last_time_alone_and_leaves_out_while_one_runs(world: World) -> None:
    world.add("nightly", cron="*/10 * * * *", state="scheduled", digest="d")
    world.now = 7400.0  # many times have passed while nobody was there
    world.ray.takes = lambda _: 1500.0
    world.tick(60.0, times=15)
    assert list(world.ray.known) == ["nightly-19700101-0200"]
    assert world.job("nightly").message == "left out 19700101-0210: nightly-19700101-0200 still goes on"
    world.store.ask_job_stop("nightly")
    world.tick(60.0, times=60)
    assert world.state("nightly") == "stopped"
    assert len(world.ray.known) == 1


def test_a_stopped_schedule_can_be_asked_for_again_and_its_jobs_begin_anew(world: World) -> None:
    world.add("nightly", cron="*/10 * * * *", state="scheduled", digest="d")
    world.tick(60.0, times=2)
    world.store.ask_job_stop("nightly")
    world.tick(60.0, times=2)
    assert world.state("nightly") == "stopped"
    assert ask.again(world.store, world.job("nightly"), now=world.now)
    assert (world.state("nightly"), world.job("nightly").ready_at) == ("scheduled", 1800.0)
    world.tick(60.0, times=12)
    first, second = world.ray.known
    assert world.ray.commands[second] == "run nightly", "its first attempt, not a retry"
    assert first != second


def test_a_clock_that_was_ahead_keeps_nothing_from_its_time(world: World) -> None:
    world.add("nightly", cron="*/10 * * * *", state="scheduled")
    schedule = world.job("nightly")
    world.store.change_job(schedule, replace(schedule, ready_at=9e9))
    late = world.add("late")
    world.store.change_job(late, replace(late, ready_at=9e9, message="retry 1 of 1 in 10 s: was lost"))
    world.tick(60.0)
    assert world.state("late") == "running"
    assert world.job("nightly").ready_at == 1200.0
