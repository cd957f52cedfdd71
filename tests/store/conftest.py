"""Stores to test on: SQLite, and a private PostgreSQL from Debian's packages."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from seatrial.store import Store
from tests.store import postgres


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    with postgres.running() as url:
        yield url


def _empty(store: Store) -> None:
    from seatrial.store.tables import metadata

    with store.engine.begin() as connection:
        metadata.drop_all(connection)
        connection.exec_driver_sql("DROP TABLE IF EXISTS alembic_version")


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.slow)])
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of a database without tables."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'deep' / 'store.db'}"
    url: str = request.getfixturevalue("postgres_url")
    found = Store(url)
    _empty(found)
    found.close()
    return url


@pytest.fixture
def store(store_url: str) -> Iterator[Store]:
    made = Store(store_url)
    made.migrate()
    yield made
    made.close()
