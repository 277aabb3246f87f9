"""Connections: one engine a process and URL, short transactions, and the translation of SQLAlchemy's errors."""

import os
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url
from sqlalchemy.engine.interfaces import DBAPIConnection, ExceptionContext
from sqlalchemy.exc import ArgumentError, DBAPIError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.orm import Session

from tasks.errors import ConfigurationError, DatabaseUnavailable, KycflowError

BUSY_SECONDS = 30
CONNECT_SECONDS = 10
SQLITE_PASSING = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_FULL}
READ_ONLY = "25006"  # SQLSTATE read_only_sql_transaction

_engines: dict[tuple[int, str], Engine] = {}
_lock = threading.Lock()


def open_database(url: str) -> Engine:
    """The engine of a URL; the same one within a process. Connects to PostgreSQL on first use only.

    Raises:
        ConfigurationError: the URL is not one of SQLite or PostgreSQL, or its file cannot be made.
    """
    # A forked child must not use its parent's connections, nor close them.
    name = (os.getpid(), url)
    with _lock:
        if name not in _engines:
            _engines[name] = _create(database_url(url))
        return _engines[name]


def close_databases() -> None:
    """Close this process's idle connections. An engine that is used again opens new ones."""
    with _lock:
        for (process, _), engine in _engines.items():
            if process == os.getpid():
                engine.dispose()


def database_url(url: str) -> URL:
    """Parse a URL and choose its driver: PostgreSQL is spoken to with psycopg 3. Raises ConfigurationError."""
    parsed = _parsed(url)
    if parsed is None:
        raise ConfigurationError(
            "KYCFLOW_DATABASE_URL is no URL such as postgresql://user:password@host/name. In a password, '@' is "
            "written as %40."
        )
    if parsed.drivername in ("postgresql", "postgres", "postgresql+psycopg"):
        return parsed.set(drivername="postgresql+psycopg")
    if parsed.drivername in ("sqlite", "sqlite+pysqlite") and parsed.database not in (None, "", ":memory:"):
        return parsed
    raise ConfigurationError(f"{database_name(url)} is not usable: give a postgresql:// URL or sqlite:///file.")


def database_name(url: str) -> str:
    """A database for people and logs, without credentials and options: `postgresql at host:5432/kycflow`."""
    parsed = _parsed(url)
    if parsed is None:
        return "a database whose URL cannot be read"
    if parsed.get_backend_name() == "sqlite":
        return f"SQLite at {parsed.database}"
    bare = URL.create(parsed.get_backend_name(), host=parsed.host, port=parsed.port, database=parsed.database)
    return bare.render_as_string().replace("://", " at ", 1)


def _parsed(url: str) -> URL | None:
    """None when it is no URL. Nothing of what the parser says is kept: it quotes passwords."""
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):
        return None
    # With a further '@', part of a password would be taken, and shown, as host, port or database.
    credentials = 0 if parsed.username is None else 1
    return parsed if parsed.get_backend_name() == "sqlite" or url.count("@") == credentials else None


def _create(url: URL) -> Engine:
    if url.get_backend_name() == "sqlite":
        _make_private(Path(str(url.database)))
        engine = create_engine(url, connect_args={"timeout": BUSY_SECONDS})
        event.listen(engine, "connect", _set_up_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
        return engine
    given = {"connect_timeout": CONNECT_SECONDS, "application_name": "kycflow"}
    engine = create_engine(
        url,
        pool_pre_ping=True,
        pool_timeout=BUSY_SECONDS,
        connect_args={name: value for name, value in given.items() if name not in url.query},
    )
    event.listen(engine, "connect", _set_up_postgresql)
    event.listen(engine, "handle_error", _leave_read_only)
    return engine


def _make_private(file: Path) -> None:
    """The database file, for its owner only: SQLite gives its write-ahead log the same mode."""
    try:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.close(os.open(file, os.O_RDWR | os.O_CREAT, 0o600))
    except OSError as exc:
        raise ConfigurationError(f"Database file {file} cannot be opened: {exc}. Set KYCFLOW_STATE_DIR.") from exc


def _set_up_sqlite(connection: DBAPIConnection, _record: Any) -> None:
    connection.isolation_level = None  # transactions are begun below, not by the driver's guess
    cursor = connection.cursor()
    cursor.execute(f"PRAGMA busy_timeout = {BUSY_SECONDS * 1000}")
    cursor.execute("PRAGMA foreign_keys = ON")
    cursor.close()


def _begin_sqlite(connection: Connection) -> None:
    # A transaction that reads first and writes later fails at once when another one wrote in between.
    write = connection.get_execution_options().get("kycflow_write")
    connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")


def _set_up_postgresql(connection: DBAPIConnection, _record: Any) -> None:
    # A machine that vanished inside a transaction would hold its locks until TCP gives up, after hours.
    cursor = connection.cursor()
    cursor.execute(f"SET idle_in_transaction_session_timeout = '{2 * BUSY_SECONDS}s'")
    cursor.execute(f"SET lock_timeout = '{BUSY_SECONDS}s'")
    cursor.close()
    connection.commit()


def _leave_read_only(context: ExceptionContext) -> None:
    # During a failover a connection may lead to a server that was demoted: let the next try make new ones.
    if getattr(context.original_exception, "sqlstate", None) == READ_ONLY:
        context.is_disconnect = True


@contextmanager
def reading(engine: Engine) -> Iterator[Session]:
    """One short transaction that only reads. Raises DatabaseUnavailable, ConfigurationError."""
    with translated(engine), Session(engine) as session:
        yield session


@contextmanager
def writing(engine: Engine) -> Iterator[Session]:
    """One short transaction, committed at the end. Raises DatabaseUnavailable, ConfigurationError."""
    with translated(engine), Session(engine.execution_options(kycflow_write=True)) as session, session.begin():
        yield session


@contextmanager
def translated(engine: Engine) -> Iterator[None]:
    """The one place where SQLAlchemy's errors become kycflow's. A broken constraint is a bug and stays what it is."""
    try:
        yield
    except SQLAlchemyError as exc:
        error = _error(exc, database_name(engine.url.render_as_string(hide_password=False)))
        if error is None:
            raise
        raise error from exc


def _error(exc: SQLAlchemyError, where: str) -> KycflowError | None:
    if isinstance(exc, PoolTimeoutError):
        return DatabaseUnavailable(f"{where} gave no connection within {BUSY_SECONDS} s.")
    if not isinstance(exc, DBAPIError):
        return None
    cause = exc.orig
    message = str(cause).strip()
    passing = exc.connection_invalidated
    unusable = False
    if isinstance(cause, sqlite3.DatabaseError) and not isinstance(cause, sqlite3.IntegrityError):
        # The low byte is the primary code, the rest says more.
        passing = getattr(cause, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF in SQLITE_PASSING
        unusable = not passing
    elif isinstance(cause, psycopg.Error):
        # libpq gives no code when a connection is refused, only words.
        refused = "authentication failed" in message or (cause.sqlstate is None and "does not exist" in message)
        passing = passing or (isinstance(cause, (psycopg.OperationalError, psycopg.InterfaceError)) and not refused)
        unusable = refused or isinstance(cause, psycopg.ProgrammingError)
    if passing:
        return DatabaseUnavailable(f"{where} does not answer or is locked: {message}")
    if unusable:
        return ConfigurationError(f"{where} cannot be used: {message}. Check the URL; run `kycflow db upgrade`.")
    return None
