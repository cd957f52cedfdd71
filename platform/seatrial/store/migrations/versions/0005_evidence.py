"""Evidence that is kept as it comes in: sums by trial, figures by unit, and what is still to be added."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

# SQLite numbers rows by itself only in a column of this type.
NUMBER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
IS_BY_UNIT = sa.text("unit IS NOT NULL")


def upgrade() -> None:
    op.add_column("exposures", sa.Column("prompt_tokens", sa.Integer(), nullable=True))
    op.add_column("exposures", sa.Column("refused", sa.Boolean(), nullable=True))
    op.add_column("outcomes", sa.Column("unit", sa.Text(), nullable=True))
    op.create_index(
        op.f("ix_outcomes_unit"),
        "outcomes",
        ["unit"],
        unique=False,
        sqlite_where=IS_BY_UNIT,
        postgresql_where=IS_BY_UNIT,
    )
    op.create_table(
        "evidence_news",
        sa.Column("id", NUMBER, nullable=False),
        sa.Column("trial_id", sa.String(length=80), nullable=False),
        sa.Column("unit", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_evidence_news")),
    )
    op.create_index(
        op.f("ix_evidence_news_trial_id_unit"), "evidence_news", ["trial_id", "unit"], unique=False
    )
    op.create_table(
        "outcome_news",
        sa.Column("outcome_id", sa.String(length=128), nullable=False),
        sa.Column("service", sa.String(length=63), nullable=False),
        sa.Column("request_id", sa.String(length=128), nullable=False),
        sa.Column("unit", sa.Text(), nullable=True),
        sa.Column("is_unknown", sa.Boolean(), nullable=False),
        sa.PrimaryKeyConstraint("outcome_id", name=op.f("pk_outcome_news")),
    )
    op.create_index(
        op.f("ix_outcome_news_service_is_unknown"), "outcome_news", ["service", "is_unknown"], unique=False
    )
    op.create_index(op.f("ix_outcome_news_request_id"), "outcome_news", ["request_id"], unique=False)
    op.create_table(
        "evidence_units",
        sa.Column("trial_id", sa.String(length=80), nullable=False),
        sa.Column("unit", sa.Text(), nullable=False),
        sa.Column("arm", sa.String(length=32), nullable=False),
        sa.Column("figures", sa.Text(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=True),
        sa.PrimaryKeyConstraint("trial_id", "unit", "arm", name=op.f("pk_evidence_units")),
    )
    op.create_index(
        op.f("ix_evidence_units_trial_id_number"), "evidence_units", ["trial_id", "number"], unique=False
    )
    op.create_table(
        "evidence_sums",
        sa.Column("trial_id", sa.String(length=80), nullable=False),
        sa.Column("service", sa.String(length=63), nullable=False),
        sa.Column("layout", sa.String(length=64), nullable=False),
        sa.Column("body", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("trial_id", name=op.f("pk_evidence_sums")),
    )
    op.create_index(op.f("ix_evidence_sums_service"), "evidence_sums", ["service"], unique=False)
    op.create_table(
        "covariates",
        sa.Column("trial_id", sa.String(length=80), nullable=False),
        sa.Column("unit", sa.Text(), nullable=False),
        sa.Column("metric", sa.String(length=63), nullable=False),
        sa.Column("value", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("trial_id", "unit", "metric", name=op.f("pk_covariates")),
    )
    # Outcomes from before this table are placed like new ones; those that have no exposure turn out unknown.
    op.execute(
        "INSERT INTO outcome_news (outcome_id, service, request_id, is_unknown) "
        "SELECT outcome_id, service, request_id, false FROM outcomes"
    )


def downgrade() -> None:
    for name in ("covariates", "evidence_sums", "evidence_units", "outcome_news", "evidence_news"):
        op.drop_table(name)
    # Older tables know outcomes of requests only: those of units would be nobody's.
    op.execute("DELETE FROM outcomes WHERE unit IS NOT NULL")
    op.drop_index(op.f("ix_outcomes_unit"), "outcomes")
    op.drop_column("outcomes", "unit")
    op.drop_column("exposures", "refused")
    op.drop_column("exposures", "prompt_tokens")
