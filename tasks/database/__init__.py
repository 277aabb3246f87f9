"""SQL: sessions' attempts, uploads, comparisons and decisions. SQLite when embedded, PostgreSQL otherwise."""

import threading
from functools import lru_cache

from sqlalchemy import Engine

from tasks.database.engine import open_database
from tasks.settings import Settings

_lock = threading.Lock()


def database_for(settings: Settings) -> Engine:
    """The settings' database, its schema checked once a process. The embedded SQLite default upgrades itself.

    Raises:
        DatabaseUnavailable: it does not answer.
        ConfigurationError: it cannot be opened, or its schema is not the one that this version needs.
    """
    with _lock:
        _check(settings.database, settings.database_url is None)
    # Not kept by the check: a forked process needs an engine of its own.
    return open_database(settings.database)


@lru_cache(maxsize=8)
def _check(url: str, embedded: bool) -> None:
    # Alembic is only needed here, once.
    from tasks.database.schema import require_schema, upgrade

    if embedded:
        upgrade(url)
    require_schema(open_database(url))
