"""The latest answers of a trial are found without reading all of them."""

from __future__ import annotations

from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_index(op.f("ix_exposures_trial_id_at"), "exposures", ["trial_id", "at"], unique=False)


def downgrade() -> None:
    op.drop_index(op.f("ix_exposures_trial_id_at"), "exposures")
