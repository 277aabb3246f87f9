"""One running system for all acceptance tests: sessions have ids of their own, so they keep out of each other's way."""

import gc
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from prefect.settings import PREFECT_LOCAL_STORAGE_PATH, temporary_settings

from tasks.database import database_for
from tasks.database.attempts import open_attempt
from tasks.database.engine import close_databases
from tasks.database.schema import upgrade
from tasks.settings import Settings
from tests.databases import postgres_url, sqlite_url
from tests.system import System, kycflow_up


@pytest.fixture(scope="session")
def system(tmp_path_factory: pytest.TempPathFactory, media_settings: Settings, weights: list[Path]) -> Iterator[System]:
    """`kycflow up` on its embedded default."""
    with kycflow_up(tmp_path_factory.mktemp("system") / "state", weights[0].parent) as system:
        yield system


@pytest.fixture(scope="session")
def stock_system(tmp_path_factory: pytest.TempPathFactory, weights: list[Path]) -> Iterator[System]:
    """`kycflow up` on PostgreSQL, with Prefect's own process workers: each execution is a process, to be looked at."""
    with postgres_url() as url:
        upgrade(url)
        state = tmp_path_factory.mktemp("stock") / "state"
        more = {"KYCFLOW_DATABASE_URL": url, "KYCFLOW_WORKER_TYPE": "process"}
        with kycflow_up(state, weights[0].parent, **more) as system:
            yield system
        close_databases()


@pytest.fixture
def session_id() -> str:
    """A new one."""
    return f"test-{uuid.uuid4().hex[:12]}"


@pytest.fixture
def worker(
    system: System, media_settings: Settings, weights: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    """This process as a GPU worker with a database, storage and results of its own."""
    del weights  # are in place
    monkeypatch.setenv("KYCFLOW_STATE_DIR", str(media_settings.state_dir))
    monkeypatch.setenv("KYCFLOW_STORAGE_URL", f"file://{tmp_path}/storage")
    monkeypatch.setenv("KYCFLOW_DATABASE_URL", sqlite_url(tmp_path))
    upgrade(sqlite_url(tmp_path))
    open_attempt(database_for(Settings()), "session", 1, 3600)
    with temporary_settings(system.prefect_settings | {PREFECT_LOCAL_STORAGE_PATH: tmp_path / "results"}):
        yield
        gc.collect()
