"""SQLAlchemy's errors become kycflow's, whichever function meets them."""

import inspect
import traceback
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID

import pytest
from sqlalchemy import Engine, text

from tasks.contracts import EngineConfig, FaceComparison, FileKind, FilePair, Status, StoredFile
from tasks.database import attempts, comparisons, leases
from tasks.database.attempts import get_attempt
from tasks.database.engine import database_name, open_database, writing
from tasks.database.schema import require_schema, upgrade
from tasks.errors import ConfigurationError, DatabaseUnavailable
from tests.attempts import EXPIRED

SHA = "a" * 64
FILE = StoredFile(storage_key="key", sha256=SHA, size_bytes=1)
LEASE = leases.Lease("name", 1)
CALLS: dict[str, Callable[[Engine], object]] = {
    "open_attempt": lambda engine: attempts.open_attempt(engine, "a", 1, 90),
    "next_attempt": lambda engine: attempts.next_attempt(engine, "a", 90),
    "get_attempt": lambda engine: attempts.get_attempt(engine, "a"),
    "register_upload": lambda engine: attempts.register_upload(engine, "a", 1, FileKind.ID_IMAGE, FILE),
    "record_decision": lambda engine: attempts.record_decision(engine, "a", 1, verdict=EXPIRED, files=FilePair()),
    "registered": lambda engine: attempts.registered(engine, ["key"]),
    "take_up": lambda engine: attempts.take_up(engine, "a", 1, by="test"),
    "close": lambda engine: attempts.close(engine, "a", 1, Status.CANCELLED, by="test"),
    "note_run": lambda engine: attempts.note_run(engine, "a", 1, UUID(int=1), by="test"),
    "note_comparison": lambda engine: attempts.note_comparison(engine, "a", 1, SHA, by="test"),
    "count_recovery": lambda engine: attempts.count_recovery(engine, "a", 1, 0, by="test", detail="a fault"),
    "of_another_system": lambda engine: attempts.of_another_system(engine, 1),
    "without_run": lambda engine: attempts.without_run(engine, 1, settled_seconds=1),
    "overdue": lambda engine: attempts.overdue(engine, 1),
    "in_progress": lambda engine: attempts.in_progress(engine, settled_seconds=1, limit=1),
    "some_attempts": lambda engine: attempts.some_attempts(engine, [("a", 1)]),
    "decided_beside": lambda engine: attempts.decided_beside(engine, since=datetime.now(UTC)),
    "waiting_for": lambda engine: attempts.waiting_for(engine, SHA),
    "begin_comparison": lambda engine: comparisons.begin_comparison(
        engine, LEASE, SHA, FILE, FILE, EngineConfig(), by="test"
    ),
    "finish_comparison": lambda engine: comparisons.finish_comparison(
        engine, LEASE, SHA, result=FaceComparison(similarity=0.5), picture_key=None, by="test"
    ),
    "get_comparison": lambda engine: comparisons.get_comparison(engine, SHA),
    "finished": lambda engine: comparisons.finished(engine, {SHA}),
    "losses": lambda engine: comparisons.losses(engine, {UUID(int=1): SHA}, {UUID(int=1): "worker"}),
    "note_loss": lambda engine: comparisons.note_loss(engine, SHA, UUID(int=1), computing=True, by="test"),
    "take": lambda engine: leases.take(engine, "name", "owner", 1),
    "claim": lambda engine: leases.claim(engine, "name", "owner", 1),
    "renew": lambda engine: leases.renew(engine, LEASE, 1),
    "release": lambda engine: leases.release(engine, LEASE),
    "break_leases": lambda engine: leases.break_leases(engine, "owner"),
    "holders": lambda engine: leases.holders(engine, ["name"]),
    "told_runs": leases.told_runs,
    "forget_expired": lambda engine: leases.forget_expired(engine, 1),
    "require_schema": require_schema,
    "upgrade": lambda engine: upgrade(engine.url.render_as_string(hide_password=False)),
}


def test_no_call_to_the_database_is_left_out_here() -> None:
    public = {
        name
        for module in (attempts, comparisons, leases)
        for name, given in vars(module).items()
        if inspect.isfunction(given) and given.__module__ == module.__name__ and not name.startswith("_")
        if "engine" in inspect.signature(given).parameters
    }
    assert public <= CALLS.keys()


@pytest.mark.parametrize("name", CALLS)
def test_a_server_that_does_not_answer_is_tried_again(name: str) -> None:
    with pytest.raises(DatabaseUnavailable, match="does not answer"):
        CALLS[name](open_database("postgresql://127.0.0.1:9/none?connect_timeout=2"))


@pytest.mark.parametrize("name", [name for name in CALLS if name != "upgrade"])
def test_missing_tables_are_a_matter_of_configuration(name: str, empty_database_url: str) -> None:
    with pytest.raises(ConfigurationError, match="kycflow db upgrade"):
        CALLS[name](open_database(empty_database_url))


@pytest.mark.parametrize(
    "url", ["mysql://host/name", "no url", "sqlite://", "sqlite:///:memory:", "sqlite:////proc/no/such.db"]
)
def test_a_database_that_cannot_be_used_is_a_matter_of_configuration(url: str) -> None:
    with pytest.raises(ConfigurationError):
        open_database(url)


def test_a_locked_file_is_tried_again(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'test.db'}"
    upgrade(url)
    engine = open_database(url)
    with writing(engine) as first:
        first.execute(text("UPDATE attempts SET recoveries = 1"))
        with pytest.raises(DatabaseUnavailable, match="locked"), writing(_impatient(url)) as second:
            second.execute(text("UPDATE attempts SET recoveries = 1"))


def _impatient(url: str) -> Engine:
    engine = open_database(f"{url}?cached_statements=64")  # another engine of the same file
    with engine.connect() as connection:
        connection.connection.cursor().execute("PRAGMA busy_timeout = 1")
    return engine


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://user:hidden-word@127.0.0.1:9/none?connect_timeout=2",
        "postgresql://127.0.0.1:9/none?password=hidden-word&connect_timeout=2",
        "postgresql://user:a%40hidden-word@127.0.0.1:9/none?connect_timeout=2",
        "postgresql://user:a@hidden-word@127.0.0.1:9/none?connect_timeout=2",
        "postgresql://user:a@b:hidden-word@127.0.0.1:9/none?connect_timeout=2",
        "postgresql://user:a@b/hidden-word@127.0.0.1:9/none?connect_timeout=2",
        "postgresql://user:a@hidden-word/c?d@127.0.0.1:9/none",
        "postgresql://user/hidden-word@127.0.0.1:9/none?connect_timeout=2",
        "mysql://user:hidden-word@host/name?password=hidden-word",
        "hidden-word",
    ],
)
def test_a_password_never_shows_in_an_error_or_its_traceback(url: str) -> None:
    with pytest.raises((DatabaseUnavailable, ConfigurationError)) as caught:
        get_attempt(open_database(url), "a")
    assert "hidden" not in "".join(traceback.format_exception(caught.value))
    assert "hidden" not in database_name(url)


@pytest.mark.parametrize("empty_database_url", ["postgresql"], indirect=True)
def test_a_password_never_shows_in_a_refusal_of_the_schema(empty_database_url: str) -> None:
    url = f"{empty_database_url}&sslpassword=hidden-word"
    with pytest.raises(ConfigurationError, match="is at None") as caught:
        require_schema(open_database(url))
    assert "hidden" not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("postgresql://user:word@host:5432/kycflow?sslmode=require", "postgresql at host:5432/kycflow"),
        ("postgresql+psycopg://user@[::1]/kycflow", "postgresql at [::1]/kycflow"),
        ("postgresql://user:a%40b@host", "postgresql at host"),
        ("postgresql://user:a@b@host/kycflow", "a database whose URL cannot be read"),
        ("sqlite:////state/a@b.db?mode=ro", "SQLite at /state/a@b.db"),
        ("", "a database whose URL cannot be read"),
    ],
)
def test_a_database_has_a_name_for_people(url: str, name: str) -> None:
    assert database_name(url) == name


@pytest.mark.parametrize("empty_database_url", ["postgresql"], indirect=True)
def test_a_server_that_was_demoted_is_left_and_tried_again(database: Engine) -> None:
    with database.connect() as connection:
        connection.execute(text("SET default_transaction_read_only = on"))
        connection.commit()
    with pytest.raises(DatabaseUnavailable, match="read-only"):
        attempts.open_attempt(database, "a", 1, 90)
    # The pool has forgotten its connections: in an outage, they led to the wrong server.
    assert attempts.open_attempt(database, "a", 1, 90)[1]
