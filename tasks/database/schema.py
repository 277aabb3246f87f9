"""The schema's version: bring a database to it, or refuse to work with another."""

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from filelock import FileLock
from sqlalchemy import Connection, Engine, text

from tasks.database.engine import database_name, open_database, translated
from tasks.errors import ConfigurationError

ADVISORY_LOCK = 0x6B7963666C6F77  # "kycflow"


def upgrade(url: str) -> None:
    """Bring a database to this version's schema. Any number of processes may do so at once.

    Raises:
        DatabaseUnavailable: it does not answer.
        ConfigurationError: it cannot be opened, its role may not change tables, or it is newer than this version.
    """
    engine = open_database(url)
    if _version(engine) == _head():
        return
    if engine.dialect.name == "postgresql":
        with translated(engine), engine.begin() as connection:
            connection.execute(text("SET LOCAL lock_timeout = 0"))
            connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": ADVISORY_LOCK})
            _migrate(connection)
        return
    with FileLock(f"{engine.url.database}.upgrade", mode=0o600), translated(engine):
        # The mode is kept in the file, and cannot be set while another process changes the schema.
        with engine.connect() as connection:
            connection.connection.cursor().execute("PRAGMA journal_mode = WAL")
        with engine.execution_options(kycflow_write=True).begin() as connection:
            _migrate(connection)


def require_schema(engine: Engine) -> None:
    """Refuse a database whose schema is another than this version's. Raises ConfigurationError, DatabaseUnavailable."""
    found, needed = _version(engine), _head()
    if found != needed:
        where = database_name(engine.url.render_as_string(hide_password=False))
        raise ConfigurationError(f"{where} is at {found}, this version needs {needed}: run `kycflow db upgrade`.")


def _version(engine: Engine) -> str | None:
    with translated(engine), engine.connect() as connection:
        return MigrationContext.configure(connection).get_current_revision()


def _head() -> str | None:
    return ScriptDirectory.from_config(_config()).get_current_head()


def _migrate(connection: Connection) -> None:
    found = MigrationContext.configure(connection).get_current_revision()
    scripts = ScriptDirectory.from_config(_config())
    if found is not None and found not in {script.revision for script in scripts.walk_revisions()}:
        raise ConfigurationError(f"The database is at {found}, which this version does not know: install a newer one.")
    config = _config()
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    return config
