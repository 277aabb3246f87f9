"""One running system for all acceptance tests: sessions have ids of their own, so they keep out of each other's way."""

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tasks.database.engine import close_databases
from tasks.database.schema import upgrade
from tasks.settings import Settings
from tests.databases import postgres_url
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
