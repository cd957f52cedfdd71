"""Where each service answers, and when its deletion was asked for."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("services", sa.Column("route_prefix", sa.String(length=64), nullable=True))
    op.add_column("services", sa.Column("deleted_at", sa.Double(), nullable=True))
    # Until now the oldest service was the one at `/`: nobody moves.
    op.execute("UPDATE services SET route_prefix = '/' || name")
    op.execute(
        "UPDATE services SET route_prefix = '/' "
        "WHERE name = (SELECT name FROM services ORDER BY created_at, name LIMIT 1)"
    )
    op.create_index(op.f("ix_services_route_prefix"), "services", ["route_prefix"], unique=True)


def downgrade() -> None:
    op.drop_index(op.f("ix_services_route_prefix"), "services")
    op.drop_column("services", "deleted_at")
    op.drop_column("services", "route_prefix")
