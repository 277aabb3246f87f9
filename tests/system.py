"""The whole system as a user starts it: `kycflow up` as a process of its own, in a fresh state folder."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar
from uuid import UUID

import httpx
import psutil
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterName
from prefect.client.schemas.objects import FlowRun
from prefect.client.schemas.sorting import FlowRunSort
from prefect.settings.legacy import Setting
from sqlalchemy import Engine, select

from deployments.client import UploadClient
from deployments.prefect_access import client_settings, read_secret
from deployments.stack import Addresses, running
from tasks.contracts import FileKind, StoredFile
from tasks.database import database_for
from tasks.database.attempts import register_upload
from tasks.database.engine import reading
from tasks.database.tables import AuditRow
from tasks.settings import Settings
from tasks.storage import open_storage
from tasks.storage.files import hash_file
from tasks.storage.keys import new_file_key

START_SECONDS = 180
DECISION_SECONDS = 600
T = TypeVar("T")
IN_THE_BACKGROUND = ("sh", "-c", 'trap "" INT; exec "$@"', "sh")
"""Before a command: starts it as a script's shell does what it puts into the background, with SIGINT ignored."""


@dataclass(frozen=True)
class System:
    """A running system, its settings, and the environment that a user's shell would have."""

    addresses: Addresses
    settings: Settings
    environment: Mapping[str, str]
    pid: int
    """Of `kycflow up`."""

    @property
    def resident(self) -> bool:
        """Whether its workers execute flow runs in their own process."""
        return self.settings.worker_type == "resident"

    @property
    def prefect_settings(self) -> dict[Setting, Any]:
        """Prefect's settings for calls to its API."""
        return {**client_settings(self.settings, self.addresses)}

    @property
    def prefect_variables(self) -> dict[str, str]:
        """The same, as variables of a process."""
        return {"PREFECT_API_URL": self.addresses.prefect_api, "PREFECT_API_AUTH_STRING": read_secret(self.settings)}

    def prefect_http(self) -> httpx.Client:
        """Its Prefect API without Prefect's client."""
        user, _, password = read_secret(self.settings).partition(":")
        return httpx.Client(base_url=self.addresses.prefect_api, auth=(user, password), timeout=60)

    @property
    def database(self) -> Engine:
        """kycflow's own database."""
        return database_for(self.settings)

    def client(self) -> UploadClient:
        """A client of its upload API."""
        return UploadClient(self.addresses.upload_api, self.settings)

    def record(self, session_id: str, kind: FileKind, path: Path) -> StoredFile:
        """Store and record a file as the upload service does, and tell nobody."""
        key = new_file_key(session_id, 1, kind)
        open_storage(self.settings).put(key, path)
        sha256, size_bytes = hash_file(path)
        stored = StoredFile(storage_key=key, sha256=sha256, size_bytes=size_bytes)
        register_upload(self.database, session_id, 1, kind, stored)
        return stored

    def worker(self, pool: str) -> psutil.Process:
        """The pool's worker, as it runs now."""

        def look() -> psutil.Process | None:
            for child in psutil.Process(self.pid).children():
                with suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
                    if child.cmdline()[1:5] == ["-m", "deployments.worker", "--pool", pool]:
                        return child
            return None

        return eventually(look)

    def kill_worker(self, pool: str) -> None:
        """Kill a worker and its flow runs' processes at once, as a machine that fails does."""
        worker = self.worker(pool)
        for process in [worker, *worker.children(recursive=True)]:
            with suppress(psutil.NoSuchProcess):
                process.kill()

    def audit(self, comparison_key: str, event: str = "computation_started") -> list[datetime]:
        """When something happened to a comparison."""
        with reading(self.database) as session:
            told = (AuditRow.comparison_key == comparison_key) & (AuditRow.event == event)
            return list(session.scalars(select(AuditRow.at).where(told).order_by(AuditRow.id)))

    def prefect(self, call: Callable[[PrefectClient], Awaitable[T]]) -> T:
        """Ask its Prefect API something."""

        async def ask() -> T:
            async with PrefectClient(self.addresses.prefect_api, auth_string=read_secret(self.settings)) as client:
                return await call(client)

        return asyncio.run(ask())

    def session_runs(self, session_id: str) -> list[FlowRun]:
        """The flow runs of a session, whoever started them."""
        named = FlowRunFilter(name=FlowRunFilterName(like_=f"{session_id} attempt"))
        return self.prefect(lambda client: client.read_flow_runs(flow_run_filter=named, limit=200))

    def runs_since(self, moment: datetime) -> list[FlowRun]:
        """Every flow run created since then, but for those that a schedule has planned."""
        runs = self.prefect(lambda client: client.read_flow_runs(sort=FlowRunSort.EXPECTED_START_TIME_DESC, limit=200))
        return [run for run in runs if run.created and run.created >= moment and not run.auto_scheduled]

    def ended_run(self, run_id: UUID) -> FlowRun:
        """A flow run once it has ended."""

        def look() -> FlowRun | None:
            run = self.prefect(lambda client: client.read_flow_run(run_id))
            return run if run.state is not None and run.state.is_final() else None

        return eventually(look)

    def kycflow(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run the command line as a user of this system."""
        return subprocess.run(
            [sys.executable, "-m", "deployments.cli", *arguments],
            env=dict(self.environment),
            capture_output=True,
            text=True,
            timeout=DECISION_SECONDS,
            check=False,
        )


def eventually(look: Callable[[], T | None], seconds: float = DECISION_SECONDS) -> T:
    """What `look` finds, as soon as it finds something."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if (found := look()) is not None:
            return found
        time.sleep(0.2)
    raise AssertionError(f"Not seen within {seconds} s.")


@contextmanager
def kycflow_up(state_dir: Path, weights_dir: Path, **variables: str) -> Iterator[System]:
    """Start `kycflow up`, wait until it is ready; stop it with Ctrl-C's signal and see that no process is left."""
    state_dir.mkdir(parents=True, exist_ok=True)
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("KYCFLOW_", "PREFECT_"))}
    environment |= {
        "KYCFLOW_STATE_DIR": str(state_dir),
        "KYCFLOW_MODELS_FOLDER": str(weights_dir),
        "KYCFLOW_LOOK_SECONDS": "3",
        **variables,
    }
    with (state_dir / "up.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "deployments.cli", "up"],
            env=environment,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    settings = Settings(
        state_dir=state_dir,
        worker_type=variables.get("KYCFLOW_WORKER_TYPE", "resident"),
        database_url=variables.get("KYCFLOW_DATABASE_URL"),
        storage_url=variables.get("KYCFLOW_STORAGE_URL"),
        s3_endpoint_url=variables.get("KYCFLOW_S3_ENDPOINT_URL"),
    )

    def ready() -> Addresses | None:
        assert process.poll() is None, (state_dir / "up.log").read_text()
        return running(settings)

    started: list[psutil.Process] = []
    try:
        yield System(eventually(ready, START_SECONDS), settings, environment, process.pid)
    finally:
        if process.poll() is None:
            started = psutil.Process(process.pid).children(recursive=True)
            process.send_signal(signal.SIGINT)
        code = process.wait(60)
    assert len(started) >= 4, "Server, two workers and the upload service should have been running."
    left = [child for child in started if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]
    assert left == [], "Ctrl-C left processes behind."
    assert code == 0, (state_dir / "up.log").read_text()
