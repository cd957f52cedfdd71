"""The tables. Times are seconds since the epoch; JSON is kept as text, readable in any database."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Double,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    text,
)

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "pk": "pk_%(table_name)s",
    }
)

_BY_UNIT = text("unit IS NOT NULL")

services = Table(
    "services",
    metadata,
    Column("name", String(63), primary_key=True),
    Column("config", Text, nullable=False),  # ServiceConfig as JSON
    Column("created_at", Double, nullable=False),
    Column("updated_at", Double, nullable=False),
    Column("state", Text, nullable=False, default="{}"),  # ServiceState as JSON, written by the controller
    Column("route_prefix", String(64)),  # where it answers, for as long as it is there
    Column("deleted_at", Double),  # when a person asked for its deletion
    Index(None, "route_prefix", unique=True),
)

trials = Table(
    "trials",
    metadata,
    Column("id", String(80), primary_key=True),
    Column("service", String(63), nullable=False),
    Column("number", Integer, nullable=False),  # counts from 1 within a service
    Column("state", String(16), nullable=False),  # open, closed
    Column("table", Text, nullable=False),  # TrialTable as JSON
    Column("policy", Text, nullable=False),  # TrialPolicy as JSON, as it was when the trial opened
    Column("champion", String(32), nullable=False),
    Column("challengers", Text, nullable=False),  # {alias: version}, those that were dropped included
    Column("opened_at", Double, nullable=False),
    Column("ramped_at", Double, nullable=False),
    Column("closed_at", Double),
    Column("verdict", String(16)),
    Column("reason", Text),
    Column("steps", Text, nullable=False, default="[]"),  # names of the closing steps that are done
    Column("dropped", Text, nullable=False, default="{}"),  # {alias: why its arm was taken out}
    Column("stop", Text),  # Stop as JSON: a person's wish to end the trial
    UniqueConstraint("service", "number"),
)

decisions = Table(
    "decisions",
    metadata,
    Column("id", String(80), primary_key=True),
    Column("trial_id", String(80), ForeignKey("trials.id"), nullable=False, unique=True),
    Column("service", String(63), nullable=False),
    Column("verdict", String(16), nullable=False),
    Column("reason", Text, nullable=False),
    Column("actor", String(80), nullable=False),
    Column("evidence", Text, nullable=False),  # Evidence as JSON
    Column("judgement", Text, nullable=False),  # Judgement as JSON
    Column("decided_at", Double, nullable=False),
    Column("cause", String(16)),  # judgement, person, load
)

# What the audit records in MLflow are compared with: the chain as it was written, record by record.
anchors = Table(
    "anchors",
    metadata,
    Column("key", String(100), primary_key=True),  # the trial's id, or the move's
    Column("service", String(63), nullable=False),
    Column("sequence", Integer, nullable=False),
    Column("hash", String(64), nullable=False),
    Column("champion", String(32)),  # whom the record leaves as champion
    Index(None, "service", "sequence"),
)

# What a trial's interval was as units came in: drawn in the audit record and on the status page.
looks = Table(
    "looks",
    metadata,
    Column("trial_id", String(80), ForeignKey("trials.id"), primary_key=True),
    Column("units", Integer, primary_key=True),
    Column("at", Double, nullable=False),
    Column("judgement", Text, nullable=False),
)

exposures = Table(
    "exposures",
    metadata,
    Column("request_id", String(128), primary_key=True),
    Column("trial_id", String(80), nullable=False),
    Column("service", String(63), nullable=False),
    Column("unit", Text, nullable=False),
    Column("sticky", Boolean, nullable=False),
    Column("arm", String(32), nullable=False),
    Column("assigned_version", String(32), nullable=False),
    Column("served_version", String(32), nullable=False),
    Column("fallback", Boolean, nullable=False),
    Column("status", Integer, nullable=False),
    Column("at", Double, nullable=False),
    Column("ttft_s", Double),
    Column("latency_s", Double),
    Column("completion_tokens", Integer),
    Column("error", Text),
    Column("prompt_tokens", Integer),
    Column("refused", Boolean),
    Index(None, "trial_id", "unit"),
    Index(None, "trial_id", "at"),
)

outcomes = Table(
    "outcomes",
    metadata,
    Column("outcome_id", String(128), primary_key=True),
    Column("request_id", String(128), nullable=False),  # empty for the outcome of a unit
    Column("service", String(63), nullable=False),
    Column("metric", String(63), nullable=False),
    Column("value", Double, nullable=False),
    Column("at", Double, nullable=False),
    Column("received_at", Double, nullable=False),
    Column("unit", Text),
    Index(None, "request_id", "metric"),
    Index(None, "unit", sqlite_where=_BY_UNIT, postgresql_where=_BY_UNIT),
)

# Units of a trial whose rows have changed since their figures were made. Only ever appended to by writers: a
# row that is not there twice could be deleted for the first change while the second is being written.
evidence_news = Table(
    "evidence_news",
    metadata,
    Column("id", BigInteger().with_variant(Integer, "sqlite"), primary_key=True),
    Column("trial_id", String(80), nullable=False),
    Column("unit", Text, nullable=False),
    Index(None, "trial_id", "unit"),
)

# Outcomes whose unit has not been looked up yet, and those that are unknown: no exposure has come so far.
outcome_news = Table(
    "outcome_news",
    metadata,
    Column("outcome_id", String(128), primary_key=True),
    Column("service", String(63), nullable=False),
    Column("request_id", String(128), nullable=False),
    Column("unit", Text),
    Column("is_unknown", Boolean, nullable=False),
    Index(None, "service", "is_unknown"),
    Index(None, "request_id"),
)

evidence_units = Table(
    "evidence_units",
    metadata,
    Column("trial_id", String(80), primary_key=True),
    Column("unit", Text, primary_key=True),
    Column("arm", String(32), primary_key=True),
    Column("figures", Text, nullable=False),  # UnitFigures as JSON
    Column("number", Integer),  # counts the trial's units; null for a second arm of the same unit
    Index(None, "trial_id", "number"),
)

evidence_sums = Table(
    "evidence_sums",
    metadata,
    Column("trial_id", String(80), primary_key=True),
    Column("service", String(63), nullable=False),
    Column("layout", String(64), nullable=False),  # digest of the rules that the figures were made by
    Column("body", Text, nullable=False),  # State as JSON
    Index(None, "service"),
)

# What units did before the trial; read once, when its first evidence is.
covariates = Table(
    "covariates",
    metadata,
    Column("trial_id", String(80), primary_key=True),
    Column("unit", Text, primary_key=True),
    Column("metric", String(63), primary_key=True),
    Column("value", Double, nullable=False),
)

replicas = Table(
    "replicas",
    metadata,
    Column("replica_id", String(128), primary_key=True),
    Column("app", String(128), nullable=False),
    Column("service", String(63), nullable=False),
    Column("revision", String(64), nullable=False),
    Column("loaded", Text, nullable=False),  # {version: "ready" | "loading" | what went wrong}
    Column("at", Double, nullable=False),
    Index(None, "service"),
)

leases = Table(
    "leases",
    metadata,
    Column("name", String(63), primary_key=True),
    Column("holder", String(200), nullable=False),
    Column("expires_at", Double, nullable=False),  # by the holder's clock
)
