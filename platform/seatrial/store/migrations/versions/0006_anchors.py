"""What the audit records are compared with, and what decided a trial."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("decisions", sa.Column("cause", sa.String(length=16), nullable=True))
    op.create_table(
        "anchors",
        sa.Column("key", sa.String(length=100), nullable=False),
        sa.Column("service", sa.String(length=63), nullable=False),
        sa.Column("sequence", sa.Integer(), nullable=False),
        sa.Column("hash", sa.String(length=64), nullable=False),
        sa.Column("champion", sa.String(length=32), nullable=True),
        sa.PrimaryKeyConstraint("key", name=op.f("pk_anchors")),
    )
    op.create_index(op.f("ix_anchors_service_sequence"), "anchors", ["service", "sequence"], unique=False)


def downgrade() -> None:
    op.drop_index(op.f("ix_anchors_service_sequence"), "anchors")
    op.drop_table("anchors")
    op.drop_column("decisions", "cause")
