"""One running system for all acceptance tests: sessions have ids of their own, so they keep out of each other's way."""

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tasks.settings import Settings
from tests.system import System, kycflow_up


@pytest.fixture(scope="session")
def system(tmp_path_factory: pytest.TempPathFactory, media_settings: Settings, weights: list[Path]) -> Iterator[System]:
    """`kycflow up` on its embedded default."""
    with kycflow_up(tmp_path_factory.mktemp("system") / "state", weights[0].parent) as system:
        yield system


@pytest.fixture(scope="session")
def stock_system(tmp_path_factory: pytest.TempPathFactory, weights: list[Path]) -> Iterator[System]:
    """`kycflow up` with Prefect's own process workers: each execution of a flow run is a process, to be looked at."""
    state = tmp_path_factory.mktemp("stock") / "state"
    with kycflow_up(state, weights[0].parent, KYCFLOW_WORKER_TYPE="process") as system:
        yield system


@pytest.fixture
def session_id() -> str:
    """A new one."""
    return f"test-{uuid.uuid4().hex[:12]}"
