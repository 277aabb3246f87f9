"""Fixtures that all tests share. Each parameter of `database` and `storage` builds its own backend only."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine

from tasks.database.engine import close_databases, open_database
from tasks.settings import Settings
from tasks.storage import Storage, open_storage
from tests.databases import postgres_url, sqlite_url

pytest_plugins = ["tests.media_fixtures"]


@pytest.fixture
def anyio_backend() -> str:
    """Asyncio is the only one in use."""
    return "asyncio"


@pytest.fixture(autouse=True)
def _own_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Settings of the developer's shell stay outside; state lies in the test's folder."""
    for name in [name for name in os.environ if name.startswith("KYCFLOW_") and "_TEST_" not in name]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("KYCFLOW_STATE_DIR", str(tmp_path / "state"))
    yield
    close_databases()


@pytest.fixture
def settings() -> Settings:
    """All defaults, in the test's folder."""
    return Settings()


@pytest.fixture(params=["sqlite", "postgresql"])
def empty_database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A database without tables."""
    if request.param == "sqlite":
        yield sqlite_url(tmp_path)
    else:
        with postgres_url() as url:
            yield url
            close_databases()


@pytest.fixture
def database(empty_database_url: str) -> Engine:
    """A database with this version's tables."""
    from tasks.database.schema import upgrade

    upgrade(empty_database_url)
    return open_database(empty_database_url)


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a real S3 server; its credentials are in the AWS environment."""
    from tests.s3_server import ACCESS_KEY, SECRET_KEY, s3_server

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", ACCESS_KEY)
        patch.setenv("AWS_SECRET_ACCESS_KEY", SECRET_KEY)
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL"):
            patch.delenv(name, raising=False)
        with s3_server(tmp_path_factory.mktemp("s3"), tmp_path_factory.mktemp("s3-log") / "weed.log") as server:
            server.create_bucket("kycflow")
            yield server.url


@pytest.fixture(params=["local", "s3"])
def storage_settings(request: pytest.FixtureRequest, tmp_path: Path) -> Settings:
    """Settings of an empty store."""
    if request.param == "local":
        return Settings(storage_url=f"file://{tmp_path}/objects")
    return Settings(storage_url=f"s3://kycflow/{tmp_path.name}", s3_endpoint_url=request.getfixturevalue("s3"))


@pytest.fixture
def storage(storage_settings: Settings) -> Storage:
    """An empty store."""
    return open_storage(storage_settings)
