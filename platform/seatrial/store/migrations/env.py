"""Alembic's entry: runs the versions on the connection that the store hands over."""

from __future__ import annotations

from alembic import context

from seatrial.store.tables import metadata


def run() -> None:
    """Upgrade within the caller's transaction, which also holds the lock against other processes."""
    context.configure(connection=context.config.attributes["connection"], target_metadata=metadata)
    with context.begin_transaction():
        context.run_migrations()


run()
