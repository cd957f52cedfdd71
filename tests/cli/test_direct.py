"""`seatrial train --no-queue`: what is submitted again, and how, when an attempt was lost."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from seatrial.cli import train
from seatrial.config.addresses import Addresses
from seatrial.config.jobs import JobsConfig
from seatrial.submission.ask import Wishes
from seatrial.submission.causes import Finish, Next, diagnose
from seatrial.submission.events import Event
from seatrial.submission.follow import Ending

RUN = Event("run", {"run_id": "r", "url": "u"})


def ending(status: str, code: int | None) -> Ending:
    finish = Finish(status, code, lines=("why",) if code else ())
    return Ending(status, code, diagnose(finish, Next.in_ray("x", "r.yaml")))


AWAY, KILLED, DONE = ending("FAILED", 75), ending("FAILED", 137), ending("SUCCEEDED", 0)


@pytest.mark.parametrize(
    ("attempts", "forced"),
    [
        ([(["MLflow does not answer"], AWAY), ([RUN], DONE)], [True, True]),
        ([(["no"], AWAY), ([RUN], AWAY), ([RUN], DONE)], [True, True, False]),
        ([([RUN], AWAY), (["no"], AWAY), ([RUN], DONE)], [True, False, False]),
        ([([], KILLED), ([RUN], DONE)], [True, False]),
        ([(["reads"], KILLED), ([RUN], DONE)], [True, True]),
    ],
)
def test_force_holds_until_an_attempt_has_begun(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    attempts: list[tuple[list[Event | str], Ending]],
    forced: list[bool],
) -> None:
    jobs: list[Any] = []
    slept: list[float] = []

    def follow(_client: Any, _id: str, hear: Callable[[Event | str], None], **_: Any) -> Ending:
        said, found = attempts[len(jobs) - 1]
        for each in said:
            hear(each)
        return found

    monkeypatch.setattr(train, "connect", lambda _: None)
    monkeypatch.setattr(train, "submit", lambda _, job: jobs.append(job) or job.submission_id)
    monkeypatch.setattr(train, "follow", follow)
    monkeypatch.setattr(train.time, "sleep", slept.append)
    found = Addresses.resolve({}, tmp_path)
    wishes = Wishes("default", retries=3)
    config = JobsConfig(backoff_s=7)
    train._directly(
        "x", "m.train", tmp_path / "r.yaml", found, config, wishes, sends=False, force=True, detach=False
    )
    assert ["--force" in job.entrypoint for job in jobs] == forced
    assert slept == [7.0 * 2**number for number in range(len(jobs) - 1)]
