"""Trials of several challengers, that are ramped, lose arms, and are stopped by people."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

FIRST_OF = {
    "sqlite": "UPDATE trials SET challenger = json_extract(challengers, '$.challenger')",
    "postgresql": "UPDATE trials SET challenger = challengers::json ->> 'challenger'",
}


def upgrade() -> None:
    op.add_column("trials", sa.Column("challengers", sa.Text(), nullable=False, server_default="{}"))
    op.add_column("trials", sa.Column("ramped_at", sa.Double(), nullable=False, server_default="0"))
    op.add_column("trials", sa.Column("dropped", sa.Text(), nullable=False, server_default="{}"))
    op.add_column("trials", sa.Column("stop", sa.Text(), nullable=True))
    op.execute(
        """UPDATE trials SET challengers = '{"challenger": "' || challenger || '"}', ramped_at = opened_at"""
    )
    op.drop_column("trials", "challenger")


def downgrade() -> None:
    op.add_column("trials", sa.Column("challenger", sa.String(32), nullable=False, server_default=""))
    op.execute(FIRST_OF[op.get_bind().dialect.name])
    for column in ("stop", "dropped", "ramped_at", "challengers"):
        op.drop_column("trials", column)
