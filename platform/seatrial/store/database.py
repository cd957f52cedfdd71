"""Opening the database, and bringing its tables up to date."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from alembic.util import CommandError
from sqlalchemy import Connection, Engine, create_engine, event, make_url, text
from sqlalchemy.exc import ArgumentError, InterfaceError, OperationalError, ProgrammingError

from seatrial.errors import RetryableError, UserError

MIGRATIONS = Path(__file__).with_name("migrations")
BUSY_TIMEOUT_S = 15.0
BUSY_PAUSE_S = 0.02
# When a PostgreSQL that says nothing is taken to be gone; seconds, the last one milliseconds.
SILENCE = {
    "connect_timeout": 5,
    "keepalives_idle": 5,
    "keepalives_interval": 5,
    "keepalives_count": 2,
    "tcp_user_timeout": 15_000,
}
NO_TABLE = "42P01"  # PostgreSQL's undefined_table
# Any constant that nothing else in the database uses; it serialises migrations in PostgreSQL.
_MIGRATION_LOCK = 7_327_225


def open_engine(url: str) -> Engine:
    """An engine for ``sqlite:///path`` or ``postgresql+psycopg://…``; nothing is connected yet.

    Raises:
        UserError: the URL is of another kind.
    """
    try:
        parsed = make_url(url)
    except ArgumentError as error:
        raise UserError("SEATRIAL_STORE_URL: no database URL: write sqlite:///path/store.db") from error
    if parsed.drivername == "postgresql":
        parsed = parsed.set(drivername="postgresql+psycopg")
    if parsed.drivername == "postgresql+psycopg":
        return create_engine(parsed, pool_pre_ping=True, pool_size=4, connect_args=SILENCE)
    if parsed.drivername != "sqlite" or not parsed.database:
        raise UserError(
            f"SEATRIAL_STORE_URL: {parsed.drivername}: use sqlite:///path/store.db or postgresql+psycopg://…"
        )
    Path(parsed.database).parent.mkdir(parents=True, exist_ok=True)
    engine = create_engine(parsed, connect_args={"timeout": BUSY_TIMEOUT_S, "check_same_thread": False})
    event.listen(engine, "connect", _sqlite_connect)
    event.listen(engine, "begin", _sqlite_begin)
    return engine


def _sqlite_connect(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # SQLAlchemy's begin event starts the transactions instead
    cursor = connection.cursor()
    cursor.execute(f"PRAGMA busy_timeout={int(BUSY_TIMEOUT_S * 1000)}")
    _switch_to_wal(cursor)
    cursor.execute("PRAGMA synchronous=FULL")  # a commit that returned is on disk
    cursor.execute("PRAGMA foreign_keys=ON")
    cursor.close()


def _switch_to_wal(cursor: Any) -> None:
    # In a new file the switch turns a reader into a writer. While another opener writes, SQLite refuses that
    # at once, whatever busy_timeout says (btree.c: sqlite3BtreeBeginTrans).
    end = time.monotonic() + BUSY_TIMEOUT_S
    while True:
        try:
            cursor.execute("PRAGMA journal_mode=WAL")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > end:
                raise
            time.sleep(BUSY_PAUSE_S)
        else:
            return


def _sqlite_begin(connection: Connection) -> None:
    # A reader that turns writer in mid-transaction fails at once in WAL mode, so writers lock at the start.
    writes = connection.get_execution_options().get("seatrial_writes", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


@contextmanager
def writing(engine: Engine) -> Iterator[Connection]:
    """A transaction that writes; committed at the end.

    Raises:
        RetryableError: the database did not answer or stayed locked.
    """
    options = {"seatrial_writes": True}
    with answering(), engine.connect().execution_options(**options) as connection, connection.begin():
        yield connection


@contextmanager
def counting(engine: Engine) -> Iterator[Connection]:
    """A transaction that writes, and in which everything read is of one moment.

    Raises:
        RetryableError: the database did not answer or stayed locked.
    """
    options: dict[str, Any] = {"seatrial_writes": True}
    if engine.dialect.name == "postgresql":
        options["isolation_level"] = "REPEATABLE READ"
    with answering(), engine.connect().execution_options(**options) as connection, connection.begin():
        yield connection


@contextmanager
def reading(engine: Engine) -> Iterator[Connection]:
    """A transaction in which everything read is of one moment.

    Raises:
        RetryableError: the database did not answer.
    """
    options = {} if engine.dialect.name == "sqlite" else {"isolation_level": "REPEATABLE READ"}
    with answering(), engine.connect().execution_options(**options) as connection, connection.begin():
        yield connection


@contextmanager
def answering() -> Iterator[None]:
    """Turn a database that is away, or has no tables yet, into the error that says: try again."""
    try:
        yield
    except (OperationalError, InterfaceError, ProgrammingError) as error:
        what = str(error.orig or error).strip().splitlines()[0]
        if getattr(error.orig, "sqlstate", None) == NO_TABLE or what.startswith("no such table"):
            fix = "the controller makes the tables: run `seatrial up`, or see SEATRIAL_STORE_URL"
            raise RetryableError(f"store: {what}: {fix}") from error
        if isinstance(error, ProgrammingError):
            raise
        raise RetryableError(f"store: {what}") from error


def migrate(engine: Engine) -> None:
    """Create or upgrade the tables; safe when several processes do it at once.

    Raises:
        UserError: the tables were made by a version of Seatrial that this one does not know.
    """
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    with writing(engine) as connection:
        if engine.dialect.name == "postgresql":
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _MIGRATION_LOCK})
        config.attributes["connection"] = connection
        try:
            command.upgrade(config, "head")
        except CommandError as error:
            raise UserError(f"SEATRIAL_STORE_URL: {error}: use the Seatrial that made its tables") from error
