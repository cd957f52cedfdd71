"""Which of several controllers acts, and who is logged in: rows taken by compare-and-set that run out."""

from __future__ import annotations

from sqlalchemy import Connection, delete, or_, select

from seatrial.store.bulk import insert
from seatrial.store.tables import leases


def take(connection: Connection, name: str, holder: str, *, now: float, lasts_s: float) -> str:
    """Take or renew the lease unless another holder's still runs; whose it is afterwards."""
    statement = insert(connection, leases).values(name=name, holder=holder, expires_at=now + lasts_s)
    is_free = or_(leases.c.holder == holder, leases.c.expires_at <= now)
    changed = {"holder": statement.excluded.holder, "expires_at": statement.excluded.expires_at}
    connection.execute(statement.on_conflict_do_update(index_elements=["name"], set_=changed, where=is_free))
    return str(connection.execute(select(leases.c.holder).where(leases.c.name == name)).scalar_one())


def give_back(connection: Connection, name: str, holder: str) -> None:
    """Let the next one take the lease at once; another holder's stays."""
    connection.execute(delete(leases).where(leases.c.name == name, leases.c.holder == holder))


def is_held(connection: Connection, name: str, holder: str, *, now: float) -> bool:
    """Whether the holder has the lease and it still runs."""
    found = select(leases.c.name).where(
        leases.c.name == name, leases.c.holder == holder, leases.c.expires_at > now
    )
    return connection.execute(found).first() is not None


def forget(connection: Connection, *, before: float) -> None:
    """Delete what ran out earlier than ``before``: anybody could take it."""
    connection.execute(delete(leases).where(leases.c.expires_at < before))
