"""A real system to break: own PostgreSQL, S3 server, Prefect server, upload service and workers, each a process."""

import os
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest

from deployments.stack import Stack
from tasks.errors import ConfigurationError
from tasks.settings import Settings
from tests.chaos.outage import OutageProxy, s3_outage_proxy
from tests.chaos.postgresql import PostgreSQL, postgresql, serve_everything
from tests.s3_server import ACCESS_KEY, SECRET_KEY, s3_server


@dataclass
class World:
    """Its parts, and what can be done to them."""

    settings: Settings
    stack: Stack
    proxy: OutageProxy
    database: PostgreSQL | None
    trouble: list[str] = field(default_factory=list)
    _left_alone: threading.Event = field(default_factory=threading.Event)
    """While it is set, nothing that ended is started again."""

    def kill(self, part: str) -> None:
        """Kill a process and all that it has started, at once, as a machine that fails does."""
        with suppress(psutil.NoSuchProcess):  # it has ended, and is about to be started again
            process = psutil.Process(self.stack.pid(part))
            for one in [*process.children(recursive=True), process]:
                with suppress(psutil.NoSuchProcess):
                    one.kill()

    def prefect_away(self, seconds: float) -> None:
        """Kill Prefect's server, and start it again after that time. Its port takes connections, and nobody answers."""
        self._left_alone.set()
        try:
            self.kill("prefect-server")
            time.sleep(seconds)
        finally:
            self._left_alone.clear()

    def database_away(self, seconds: float) -> None:
        """PostgreSQL, with Prefect's database in it, is stopped; or of SQLite's two, kycflow's takes no write."""
        if self.database is not None:
            self.database.stop()
            time.sleep(seconds)
            self.database.start()
            return
        with closing(sqlite3.connect(self.settings.state_dir / "kycflow.db", isolation_level=None)) as other:
            other.execute("PRAGMA busy_timeout = 60000")
            other.execute("BEGIN EXCLUSIVE")
            time.sleep(seconds)
            other.execute("ROLLBACK")

    def storage_away(self, seconds: float) -> None:
        """Storage answers 503."""
        with self.proxy.failing():
            time.sleep(seconds)


@contextmanager
def world(state_dir: Path, weights_dir: Path, *, embedded: bool, worker_type: str) -> Iterator[World]:
    """Start everything; whatever ends by itself is started again, as `kycflow up` does.

    Args:
        embedded: SQLite for both databases, in place of PostgreSQL.
        worker_type: of both work pools.
    """
    with ExitStack() as exits:
        patch = exits.enter_context(pytest.MonkeyPatch.context())
        for name in [name for name in os.environ if name.startswith(("KYCFLOW_", "PREFECT_", "AWS_"))]:
            patch.delenv(name)
        variables = {
            "AWS_ACCESS_KEY_ID": ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
            "AWS_DEFAULT_REGION": "us-east-1",
            "KYCFLOW_STATE_DIR": str(state_dir),
            "KYCFLOW_MODELS_FOLDER": str(weights_dir),
            "KYCFLOW_STORAGE_URL": "s3://kycflow/chaos",
            "KYCFLOW_WORKER_TYPE": worker_type,
        }
        for name, value in variables.items():
            patch.setenv(name, value)
        state_dir.mkdir(parents=True)
        (state_dir / "s3").mkdir()
        server = exits.enter_context(s3_server(state_dir / "s3", state_dir / "s3.log"))
        server.create_bucket("kycflow")
        proxy = exits.enter_context(s3_outage_proxy(server.url))
        patch.setenv("KYCFLOW_S3_ENDPOINT_URL", proxy.url)
        cluster = None if embedded else exits.enter_context(postgresql())
        if cluster is not None:
            serve_everything(cluster, patch)
        settings = Settings()
        stack = exits.enter_context(Stack(settings))
        made = World(settings, stack, proxy, cluster)
        end = threading.Event()
        keeper = threading.Thread(target=_supervise, args=(made, end), daemon=True)
        keeper.start()
        exits.callback(keeper.join)
        exits.callback(end.set)
        yield made


def _supervise(made: World, end: threading.Event) -> None:
    while not end.wait(0.5):
        if made._left_alone.is_set():
            continue
        try:
            made.stack.check()
        except ConfigurationError as exc:
            made.trouble.append(str(exc))
            return
