"""The store: services, trials, exposures, outcomes and decisions, in SQLite or PostgreSQL.

    store = Store(url)                 # connects lazily; safe to share between threads
    store.migrate()                    # create or upgrade the tables; safe from several processes at once
    store.add_exposures(rows)          # idempotent by request_id, durable when it returns
    store.add_outcomes(rows)           # idempotent by outcome_id, durable when it returns; see outcome_row
    store.put_replica(row)             # insert or replace

Every call raises `RetryableError` while the database is away or locked, and `ValueError` for a bad row.
"""

from seatrial.store.store import Store
from seatrial.store.writer import outcome_row

__all__ = ["Store", "outcome_row"]
