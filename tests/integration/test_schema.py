"""The schema: models and migrations agree, and any number of processes may upgrade at once."""

import stat
import subprocess
import sys

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Engine, inspect, text

from tasks.database import database_for
from tasks.database.attempts import get_attempt
from tasks.database.engine import open_database, reading, writing
from tasks.database.schema import require_schema, upgrade
from tasks.database.tables import Base
from tasks.errors import ConfigurationError
from tasks.settings import Settings


def test_models_and_migrations_agree(database: Engine) -> None:
    with database.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, Base.metadata) == []


def test_the_index_of_open_attempts_is_partial(database: Engine) -> None:
    [index] = [index for index in inspect(database).get_indexes("attempts") if index["name"] == "ix_attempts_open"]
    assert index["dialect_options"][f"{database.dialect.name}_where"] is not None


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
    assert [(racer.communicate(timeout=60)[1], racer.returncode) for racer in racers] == [(b"", 0)] * 6
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
