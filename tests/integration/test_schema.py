"""The schema: models and migrations agree, and any number of processes may upgrade at once."""

import stat
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from sqlalchemy import Engine, bindparam, inspect, select, text

from tasks.contracts import FileKind
from tasks.database import database_for, migrations
from tasks.database.attempts import get_attempt, in_progress, overdue, record_decision, register_upload
from tasks.database.engine import open_database, reading, writing
from tasks.database.schema import require_schema, upgrade
from tasks.database.tables import AttemptRow, Base
from tasks.database.types import UtcDateTime
from tasks.errors import ConfigurationError
from tasks.settings import Settings
from tests.attempts import MATCH, stored


def test_models_and_migrations_agree(database: Engine) -> None:
    with database.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, Base.metadata) == []


def test_the_indexes_that_the_sweep_and_the_purge_use_are_partial(database: Engine) -> None:
    found = {index["name"]: index for index in inspect(database).get_indexes("attempts")}
    for name in ("ix_attempts_waiting", "ix_attempts_in_progress", "ix_attempts_unerased"):
        assert found[name]["dialect_options"][f"{database.dialect.name}_where"] is not None
    assert "ix_attempts_open" not in found


def old_database(url: str, revision: str) -> Engine:
    """As an earlier version left it."""
    config = Config()
    config.set_main_option("script_location", str(Path(migrations.__file__).parent))
    config.set_main_option("path_separator", "os")
    engine = open_database(url)
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, revision)
    return engine


SECOND_VERSION = [
    """INSERT INTO attempts (session_id, attempt, created_at, deadline_at, decided) VALUES
    ('empty', 1, :created, :deadline, false), ('half', 1, :created, :deadline, false),
    ('twice', 1, :created, :deadline, false), ('both', 1, :created, :deadline, false),
    ('decided', 1, :created, :deadline, true), ('decided', 2, :created, :deadline, false),
    ('expired', 1, :created, :deadline, true)""",
    """INSERT INTO uploads (id, session_id, attempt, kind, storage_key, sha256, size_bytes, uploaded_at) VALUES
    (1, 'half', 1, 'id_image', 'a', :sha256, 5, :created), (2, 'twice', 1, 'id_image', 'b', :sha256, 5, :created),
    (3, 'twice', 1, 'id_image', 'c', :sha256, 5, :created), (4, 'both', 1, 'id_image', 'd', :sha256, 5, :created),
    (5, 'both', 1, 'id_image', 'e', :sha256, 5, :created), (6, 'both', 1, 'selfie_video', 'f', :sha256, 5, :created),
    (7, 'decided', 1, 'id_image', 'g', :sha256, 5, :created),
    (8, 'decided', 1, 'selfie_video', 'h', :sha256, 5, :created)""",
    """INSERT INTO decisions (session_id, attempt, decision, reason, similarity, decided_at) VALUES
    ('decided', 1, 'match', 'SIMILARITY_SUFFICIENT', 0.7, :decided),
    ('expired', 1, 'expired', 'BOTH_FILES_MISSING', NULL, :decided)""",
]


def test_an_old_database_gets_each_attempts_status_and_keeps_its_rows(empty_database_url: str) -> None:
    created = datetime(2026, 1, 1, 12, tzinfo=UTC)
    decided = created + timedelta(minutes=2)
    engine = old_database(empty_database_url, "0002")
    given = {"created": created, "deadline": created + timedelta(hours=1), "decided": decided, "sha256": "a" * 64}
    moment = UtcDateTime()
    types = [bindparam(name, type_=moment) for name in ("created", "deadline", "decided")]
    with writing(engine) as session:
        for statement in SECOND_VERSION:
            named = [one for one in types if f":{one.key}" in statement]
            session.execute(
                text(statement).bindparams(*named), {n: v for n, v in given.items() if f":{n}" in statement}
            )
    upgrade(empty_database_url)
    require_schema(engine)
    with reading(engine) as session:
        rows = session.execute(
            select(AttemptRow.session_id, AttemptRow.attempt, AttemptRow.status, AttemptRow.closed_at)
        ).all()
    assert {(name, number): (status.value, closed) for name, number, status, closed in rows} == {
        ("empty", 1): ("awaiting_files", None),
        ("half", 1): ("awaiting_files", None),
        ("twice", 1): ("awaiting_files", None),
        ("both", 1): ("in_progress", None),
        ("decided", 1): ("decided", decided),
        ("decided", 2): ("awaiting_files", None),
        ("expired", 1): ("decided", decided),
    }
    found = get_attempt(engine, "decided", 1)
    assert found.files.complete
    assert (found.created_at, found.recoveries, found.announced, found.flow_run_id) == (created, 0, False, None)
    assert found.decision is not None
    assert found.decision.similarity == 0.7
    # What comes next works on them as on new ones.
    assert [attempt.session_id for attempt in overdue(engine, 10)] == ["decided", "empty", "half", "twice"]
    assert [attempt.session_id for attempt in in_progress(engine, settled_seconds=1, limit=10)] == ["both"]
    files = register_upload(engine, "half", 1, FileKind.SELFIE_VIDEO, stored("i")).files
    assert record_decision(engine, "half", 1, verdict=MATCH, files=files) is not None


def test_an_empty_database_is_refused_with_the_command_that_helps(empty_database_url: str) -> None:
    with pytest.raises(ConfigurationError, match=r"is at None, this version needs .*: run `kycflow db upgrade`"):
        require_schema(open_database(empty_database_url))
    with pytest.raises(ConfigurationError):
        get_attempt(open_database(empty_database_url), "a")


def test_a_newer_database_is_refused(database: Engine) -> None:
    with writing(database) as session:
        session.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(ConfigurationError, match="9999"):
        require_schema(database)
    with pytest.raises(ConfigurationError, match="9999"):
        upgrade(database.url.render_as_string(hide_password=False))


def test_racing_processes_upgrade_once(empty_database_url: str) -> None:
    code = "import sys; from tasks.database.schema import upgrade; upgrade(sys.argv[1])"
    command = [sys.executable, "-c", code, empty_database_url]
    racers = [subprocess.Popen(command, stderr=subprocess.PIPE) for _ in range(6)]
    assert [(racer.communicate(timeout=180)[1], racer.returncode) for racer in racers] == [(b"", 0)] * 6
    require_schema(open_database(empty_database_url))


def test_the_embedded_database_upgrades_itself_and_is_private(settings: Settings) -> None:
    engine = database_for(settings)
    require_schema(engine)
    assert database_for(settings) is engine
    with reading(engine) as session:
        assert session.execute(text("PRAGMA journal_mode")).scalar() == "wal"
        assert session.execute(text("PRAGMA foreign_keys")).scalar() == 1
        modes = {stat.S_IMODE(file.stat().st_mode) for file in settings.state_dir.glob("kycflow.db*")}
    assert modes == {0o600}


def test_a_named_database_does_not_upgrade_itself(empty_database_url: str) -> None:
    with pytest.raises(ConfigurationError, match="kycflow db upgrade"):
        database_for(Settings(database_url=empty_database_url))
