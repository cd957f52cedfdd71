"""Trials of several challengers, that are ramped, lose arms, and are stopped by people."""

from __future__ import annotations

import json

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

CHAMPION = "champion"


def upgrade() -> None:
    op.add_column("trials", sa.Column("challengers", sa.Text(), nullable=False, server_default="{}"))
    op.add_column("trials", sa.Column("ramped_at", sa.Double(), nullable=False, server_default="0"))
    op.add_column("trials", sa.Column("dropped", sa.Text(), nullable=False, server_default="{}"))
    op.add_column("trials", sa.Column("stop", sa.Text(), nullable=True))
    op.execute("UPDATE trials SET ramped_at = opened_at")
    connection = op.get_bind()
    update = sa.text("UPDATE trials SET challengers = :challengers WHERE id = :id")
    for row in connection.execute(sa.text('SELECT id, "table", challenger FROM trials')).all():
        # All arms: a trial of several, whose tables went down and up again, still has its table.
        arms = {each["name"]: each["version"] for each in json.loads(row.table)["arms"]}
        arms.pop(CHAMPION, None)
        found = json.dumps(arms or {"challenger": row.challenger})
        connection.execute(update, {"challengers": found, "id": row.id})
    op.drop_column("trials", "challenger")


def downgrade() -> None:
    op.add_column("trials", sa.Column("challenger", sa.String(32), nullable=False, server_default=""))
    connection = op.get_bind()
    update = sa.text("UPDATE trials SET challenger = :challenger WHERE id = :id")
    for row in connection.execute(sa.text("SELECT id, challengers FROM trials")).all():
        # The first one; of a trial that has lost an arm, or began with others, older versions know no more.
        challenger = next(iter(json.loads(row.challengers).values()), "")
        connection.execute(update, {"challenger": challenger, "id": row.id})
    for column in ("stop", "dropped", "ramped_at", "challengers"):
        op.drop_column("trials", column)
