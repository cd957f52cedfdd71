"""Many rows in one statement, and in the same transaction what they are news of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from sqlalchemy import ColumnElement, Connection, Table, any_, literal
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import DataError, IntegrityError

Row = Mapping[str, Any]


def insert(connection: Connection, table: Table) -> sqlite.Insert | postgresql.Insert:
    """The dialect's own INSERT, which knows ON CONFLICT."""
    return postgresql.insert(table) if connection.dialect.name == "postgresql" else sqlite.insert(table)


def is_one_of(connection: Connection, column: Any, values: Sequence[str]) -> ColumnElement[bool]:
    """Whether ``column`` is one of the values, which travel as one array where a database has arrays."""
    if connection.dialect.name == "postgresql":
        array = literal(list(values), postgresql.ARRAY(column.type))
        return column == any_(array)  # type: ignore[no-any-return]
    return column.in_(values)  # type: ignore[no-any-return]


def insert_all(
    connection: Connection, table: Table, names: Sequence[str], rows: Sequence[tuple[Any, ...]]
) -> None:
    """Insert rows that have the values of the columns ``names``."""
    if not rows:
        return
    into = f"INSERT INTO {table.name} ({', '.join(names)})"
    if connection.dialect.name == "postgresql":
        arrays, columns = _arrays(connection, table, names, rows)
        connection.exec_driver_sql(f"{into} SELECT * FROM unnest({arrays})", columns)  # noqa: S608  # names of the code's own tables
    else:
        places = ", ".join("?" for _ in names)
        connection.exec_driver_sql(f"{into} VALUES ({places})", list(rows))


def update_all(
    connection: Connection,
    table: Table,
    keys: Sequence[str],
    changed: Sequence[str],
    rows: Sequence[tuple[Any, ...]],
) -> None:
    """Set the ``changed`` columns of those rows that ``keys`` name; a row has the keys' values first."""
    if not rows:
        return
    if connection.dialect.name == "postgresql":
        names = [*keys, *changed]
        arrays, columns = _arrays(connection, table, names, rows)
        sets = ", ".join(f"{name} = news.{name}" for name in changed)
        same = " AND ".join(f"{table.name}.{name} = news.{name}" for name in keys)
        statement = f"UPDATE {table.name} SET {sets} FROM unnest({arrays}) AS news({', '.join(names)})"  # noqa: S608
        connection.exec_driver_sql(f"{statement} WHERE {same}", columns)
        return
    sets = ", ".join(f"{name} = ?" for name in changed)
    same = " AND ".join(f"{name} = ?" for name in keys)
    at = len(keys)
    connection.exec_driver_sql(
        f"UPDATE {table.name} SET {sets} WHERE {same}",  # noqa: S608
        [(*row[at:], *row[:at]) for row in rows],
    )


def _arrays(
    connection: Connection, table: Table, names: Sequence[str], rows: Sequence[tuple[Any, ...]]
) -> tuple[str, tuple[list[Any], ...]]:
    """One array a column: one statement to parse and plan, whatever the number of rows."""
    types = [str(table.c[name].type.compile(connection.dialect)).split("(")[0] for name in names]
    return ", ".join(f"%s::{kind}[]" for kind in types), tuple(map(list, zip(*rows, strict=True)))


def add_rows(connection: Connection, table: Table, rows: Sequence[Row], news: str) -> None:
    """Insert the rows whose key is not taken. ``news`` is `TABLE (COLUMNS) SELECT …`, made of those rows.

    Raises:
        ValueError: a column is unknown or missing, or the database cannot keep a value; nothing is written.
    """
    if not rows:
        return
    # In the order of their keys: two writers with the same rows then wait for each other at most once.
    values = sorted((complete(table, row) for row in rows), key=lambda value: str(value[0]))
    is_postgresql = connection.dialect.name == "postgresql"
    try:
        (_add_postgresql if is_postgresql else _add_sqlite)(connection, table, values, news)
    except (DataError, IntegrityError, OverflowError) as error:
        reason = str(getattr(error, "orig", None) or error).strip().splitlines()[0]
        raise ValueError(f"{table.name}: a value that the database cannot keep: {reason}") from error


def complete(table: Table, row: Row) -> tuple[Any, ...]:
    """The row's values in the table's order, None for nullable columns that it lacks.

    Raises:
        ValueError: a column that the table does not have, or a required one that is missing.
    """
    names, known, required = _columns(table)
    if not row.keys() <= known:
        raise ValueError(f"{table.name}: no column {', '.join(sorted(row.keys() - known))}: remove it")
    values = tuple(map(row.get, names))
    if any(values[place] is None for place in required):
        missing = [names[place] for place in required if values[place] is None]
        raise ValueError(f"{table.name}: {', '.join(missing)}: missing: give a value")
    return values


@cache
def _columns(table: Table) -> tuple[tuple[str, ...], frozenset[str], tuple[int, ...]]:
    """Names, and the places of those that must be given."""
    names = tuple(column.name for column in table.c)
    return names, frozenset(names), tuple(at for at, column in enumerate(table.c) if not column.nullable)


def _add_sqlite(connection: Connection, table: Table, values: Sequence[tuple[Any, ...]], news: str) -> None:
    names = ", ".join(column.name for column in table.c)
    places = ", ".join("?" for _ in table.c)
    # Nobody else writes until this transaction ends, so what lies above is its own.
    last = connection.exec_driver_sql(f"SELECT coalesce(max(rowid), 0) FROM {table.name}").scalar_one()  # noqa: S608  # names of the code's own tables
    insertion = f"INSERT INTO {table.name} ({names}) VALUES ({places}) ON CONFLICT DO NOTHING"  # noqa: S608
    connection.exec_driver_sql(insertion, list(values))
    connection.exec_driver_sql(f"INSERT INTO {news} FROM {table.name} WHERE rowid > ?", (last,))


def _add_postgresql(
    connection: Connection, table: Table, values: Sequence[tuple[Any, ...]], news: str
) -> None:
    names = ", ".join(column.name for column in table.c)
    arrays, columns = _arrays(connection, table, table.c.keys(), values)
    statement = (
        f"WITH fresh AS (INSERT INTO {table.name} ({names}) SELECT * FROM unnest({arrays}) "  # noqa: S608
        f"ON CONFLICT DO NOTHING RETURNING *) INSERT INTO {news} FROM fresh"
    )
    connection.exec_driver_sql(statement, columns)
