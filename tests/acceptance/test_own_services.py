"""The same system on services of the operator's own: S3 for files, PostgreSQL for both databases."""

import secrets
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import psycopg
import pytest

from deployments.demo_media import DemoMedia
from tasks.database.attempts import get_attempt
from tasks.database.comparisons import get_comparison
from tasks.storage import open_storage
from tests.databases import POSTGRES_URL
from tests.services import missing
from tests.system import DECISION_SECONDS, kycflow_up


@contextmanager
def own_database(name: str) -> Iterator[str]:
    """The URL of a database of its own on the real PostgreSQL."""
    try:
        admin = psycopg.connect(POSTGRES_URL, autocommit=True, connect_timeout=5)
    except psycopg.OperationalError as exc:
        missing(f"No PostgreSQL at {POSTGRES_URL} ({exc}); set KYCFLOW_TEST_POSTGRES_URL")
    with admin:
        user = admin.info.user
        admin.execute(f"CREATE DATABASE {name}")
        try:
            url = urlsplit(POSTGRES_URL)
            server = url.netloc if "@" in url.netloc else f"{user}@{url.netloc}"
            yield f"postgresql://{server}/{name}"
        finally:
            admin.execute(f"DROP DATABASE {name} WITH (FORCE)")


def test_a_session_on_s3_and_postgresql(
    tmp_path: Path,
    demo_media: DemoMedia,
    weights: list[Path],
    s3: str,
    session_id: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    suffix = secrets.token_hex(4)
    with own_database(f"kycflow_{suffix}") as ours, own_database(f"prefect_{suffix}") as prefects:
        variables = {
            "KYCFLOW_DATABASE_URL": ours,
            "KYCFLOW_STORAGE_URL": f"s3://kycflow/{session_id}",
            "KYCFLOW_S3_ENDPOINT_URL": s3,
            "PREFECT_SERVER_DATABASE_CONNECTION_URL": prefects.replace("postgresql://", "postgresql+asyncpg://"),
            "KYCFLOW_PREFECT_PORT": "4600",
            "KYCFLOW_API_PORT": "8820",
        }
        monkeypatch.setenv("KYCFLOW_DATABASE_URL", ours)
        subprocess.run([sys.executable, "-m", "deployments.cli", "db", "upgrade"], check=True, timeout=60)
        with kycflow_up(tmp_path / "system", weights[0].parent, **variables) as system:
            with system.client() as client:
                client.create_session(session_id)
                client.upload(session_id, "id_image", demo_media.genuine_card)
                client.upload(session_id, "selfie_video", demo_media.selfie_video)
                assert client.wait(session_id, DECISION_SECONDS)["decision"] == "match"
            attempt = get_attempt(system.database, session_id)
            assert system.database.dialect.name == "postgresql"
            assert attempt.decision is not None
            assert attempt.decision.comparison_key is not None
            comparison = get_comparison(system.database, attempt.decision.comparison_key)
            assert comparison is not None
            assert comparison.picture_key is not None
            storage = open_storage(system.settings)
            assert storage.url(comparison.picture_key).startswith("s3://")
            assert storage.size(comparison.picture_key)
            system.database.dispose()
