"""Databases for tests: a file, or a schema of its own on a real PostgreSQL."""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
from sqlalchemy import Engine, Row, select

from tasks.database.engine import reading
from tasks.database.tables import Base
from tests.services import missing

POSTGRES_URL = os.environ.get("KYCFLOW_TEST_POSTGRES_URL", "postgresql://127.0.0.1:5432/test")


def sqlite_url(folder: Path) -> str:
    """Of a file that does not exist yet."""
    return f"sqlite:///{folder / 'test.db'}"


@contextmanager
def postgres_url() -> Iterator[str]:
    """Of an empty schema, dropped afterwards."""
    name = f"kycflow_test_{secrets.token_hex(6)}"
    try:
        admin = psycopg.connect(POSTGRES_URL, autocommit=True, connect_timeout=5)
    except psycopg.OperationalError as exc:
        missing(f"No PostgreSQL at {POSTGRES_URL} ({exc}); set KYCFLOW_TEST_POSTGRES_URL")
    with admin:
        admin.execute(f"CREATE SCHEMA {name}")
        try:
            yield f"{POSTGRES_URL}{'&' if '?' in POSTGRES_URL else '?'}options=-csearch_path%3D{name}"
        finally:
            admin.execute(f"DROP SCHEMA {name} CASCADE")


def everything(engine: Engine) -> dict[str, list[Row[tuple[object, ...]]]]:
    """All rows of all tables, by table: to see that nothing was written."""
    with reading(engine) as session:
        return {
            name: list(session.execute(select(table).order_by(*table.primary_key)))
            for name, table in Base.metadata.tables.items()
        }
