"""The queue's tables, beside those of `tables.py`."""

from __future__ import annotations

from sqlalchemy import Boolean, Column, Double, Index, Integer, LargeBinary, String, Table, Text

from seatrial.store.tables import metadata

jobs = Table(
    "jobs",
    metadata,
    Column("id", String(160), primary_key=True),
    Column("digest", String(64), nullable=False),
    Column("name", String(63), nullable=False),
    Column("team", String(63), nullable=False),
    Column("priority", Integer, nullable=False),
    Column("spec", Text, nullable=False),
    Column("need", Text, nullable=False),
    Column("submitted_at", Double, nullable=False),
    Column("ready_at", Double, nullable=False),
    Column("state", String(16), nullable=False),
    Column("message", Text, nullable=False),
    Column("after", Text, nullable=False),  # [job id]
    Column("retries", Integer, nullable=False),
    Column("failures", Integer, nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("time_limit_s", Double),
    Column("cron", String(128)),
    Column("wants_stop", Boolean, nullable=False),
    Column("is_accounted", Boolean, nullable=False),
    Column("passed_at", Double),
    Column("ended_at", Double),
    Column("exit_code", Integer),
    Column("cause", Text),
    Column("result", Text, nullable=False),
    Index(None, "digest"),
    Index(None, "state"),
    Index(None, "submitted_at"),
)

job_attempts = Table(
    "job_attempts",
    metadata,
    Column("job_id", String(160), primary_key=True),
    Column("number", Integer, primary_key=True),
    Column("team", String(63), nullable=False),
    Column("gpus", Double, nullable=False),
    Column("started_at", Double, nullable=False),
    Column("ended_at", Double),
    Column("status", String(16), nullable=False),
    Column("cause", Text, nullable=False),
    Index(None, "ended_at"),
)

job_packages = Table(
    "job_packages",
    metadata,
    Column("digest", String(64), primary_key=True),
    Column("body", LargeBinary, nullable=False),  # a zip file
    Column("at", Double, nullable=False),
)
