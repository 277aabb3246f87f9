"""Starts what is compared, each with a PostgreSQL of its own, and speaks to it as an upload service would."""

import asyncio
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import psycopg
import pytest
from celery import Celery
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolUpdate
from prefect.settings import PREFECT_CLIENT_CSRF_SUPPORT_ENABLED, temporary_settings
from temporalio.client import Client

from deployments.prefect_access import client_settings
from deployments.provision import PROCESS, process_template
from deployments.stack import Stack
from deployments.stopping import stop_tree
from tasks.contracts import FileKind, StoredFile
from tasks.database import database_for
from tasks.database.attempts import open_attempt, register_upload
from tasks.database.engine import close_databases
from tasks.settings import Settings
from tasks.storage import open_storage
from tasks.storage.files import hash_file
from tasks.storage.keys import new_file_key
from tasks.trigger import trigger
from tests.benchmarks.orchestration import celery_app, temporal_app, work
from tests.benchmarks.orchestration.work import Kind
from tests.benchmarks.servers import cpu
from tests.chaos.postgresql import PostgreSQL, postgresql, serve_everything

PACKAGE = "tests.benchmarks.orchestration"
DEADLINE_SECONDS = 3600
START_SECONDS = 60
PARTS = SERVERS, WORKERS, POSTGRESQL = "servers", "workers", "PostgreSQL"


@dataclass
class Contender(ABC):
    """One of them, running."""

    database_url: str
    parts: dict[str, list[int]]
    """Process ids: of servers, of workers, of PostgreSQL. What they have started belongs to them."""

    @abstractmethod
    async def upload(self, session_id: str, kind: str, path: Path) -> None:
        """Store a file, and tell the orchestrator of it."""

    @abstractmethod
    def kill(self) -> None:
        """Kill what compares, with all that it has started, and start it again."""

    COMPUTATIONS = "SELECT count(*) FROM computations WHERE session_id LIKE %s"

    def computations(self, prefix: str) -> int:
        """How many comparisons were begun for sessions whose id begins so."""
        return self._count(self.COMPUTATIONS, prefix)

    def decisions(self, prefix: str) -> int:
        """How many decisions are stored."""
        return self._count("SELECT count(*) FROM decisions WHERE session_id LIKE %s", prefix)

    def decided(self, prefix: str) -> int:
        """How many sessions have one."""
        return self._count("SELECT count(DISTINCT session_id) FROM decisions WHERE session_id LIKE %s", prefix)

    def _count(self, query: str, prefix: str) -> int:
        if self._connection is None:
            self._connection = psycopg.connect(self.database_url, autocommit=True)
        row = self._connection.execute(query, (f"{prefix}%",)).fetchone()
        return int(row[0]) if row else 0

    _connection: "psycopg.Connection[Any] | None" = field(default=None, init=False)

    def cpu(self) -> dict[str, float]:
        """CPU seconds so far, by part."""
        return {part: sum(cpu(psutil.Process(pid)) for pid in pids) for part, pids in self.parts.items()}

    def mib(self) -> dict[str, float]:
        """Memory now, by part; what processes share is counted once (PSS)."""
        return {part: sum(map(_memory, pids)) / 2**20 for part, pids in self.parts.items()}


def _memory(pid: int) -> float:
    used, root = 0.0, psutil.Process(pid)
    for process in [root, *root.children(recursive=True)]:
        with suppress(psutil.NoSuchProcess):
            used += process.memory_full_info().pss
    return used


# --- kycflow ----------------------------------------------------------------------------------------------------------


class _Stack(Stack):
    """Its comparing worker may have an engine that does nothing."""

    kind: Kind

    def _run(self, name: str, module: str, *arguments: str) -> None:
        if name == "worker-gpu" and self.kind is not Kind.ENGINE:
            super()._run(name, f"{PACKAGE}.idle_engine", module, *arguments)
        else:
            super()._run(name, module, *arguments)


@dataclass
class Kycflow(Contender):
    """This project: `kycflow up` on PostgreSQL, files in a folder."""

    stack: Stack
    settings: Settings

    COMPUTATIONS = """SELECT coalesce(sum(computations), 0) FROM comparisons WHERE comparison_key IN
        (SELECT comparison_key FROM attempts WHERE session_id LIKE %s)"""

    async def upload(self, session_id: str, kind: str, path: Path) -> None:
        await trigger(await asyncio.to_thread(self._store, session_id, FileKind(kind), path))

    def _store(self, session_id: str, kind: FileKind, path: Path) -> Any:
        """As the upload service does, but for its check of the file."""
        database = database_for(self.settings)
        open_attempt(database, session_id, 1, DEADLINE_SECONDS)
        key = new_file_key(session_id, 1, kind)
        open_storage(self.settings).put(key, path)
        sha256, size_bytes = hash_file(path)
        stored = StoredFile(storage_key=key, sha256=sha256, size_bytes=size_bytes)
        return register_upload(database, session_id, 1, kind, stored)

    def kill(self) -> None:
        _kill(self.stack.pid("worker-gpu"))
        self.stack.check()
        self.parts[WORKERS] = [self.stack.pid("worker-upkeep"), self.stack.pid("worker-gpu")]


@contextmanager
def kycflow(kind: Kind, worker_type: str, folder: Path) -> Iterator[Kycflow]:
    """Start it with workers of this type."""
    with _postgresql() as cluster, pytest.MonkeyPatch.context() as patch, ExitStack() as exits:
        patch.setenv("KYCFLOW_MODELS_FOLDER", str(Settings().weights_dir))
        patch.setenv("KYCFLOW_STATE_DIR", str(folder))
        patch.setenv("KYCFLOW_WORKER_TYPE", worker_type)
        patch.setenv(work.COMPARISON, kind)
        serve_everything(cluster, patch)
        settings = Settings()
        stack = _Stack(settings)
        stack.kind = kind
        exits.callback(close_databases)
        exits.enter_context(stack)
        client = client_settings(settings, stack.addresses) | {PREFECT_CLIENT_CSRF_SUPPORT_ENABLED: False}
        exits.enter_context(temporary_settings(client))  # as the upload service has it
        if worker_type == PROCESS and kind is not Kind.ENGINE:
            asyncio.run(_with_idle_engine())
        workers = [stack.pid("worker-upkeep"), stack.pid("worker-gpu")]
        parts = {SERVERS: [stack.pid("prefect-server")], WORKERS: workers, POSTGRESQL: [cluster.process.pid]}
        yield Kycflow(cluster.url("kycflow"), parts, stack, settings)


async def _with_idle_engine() -> None:
    template = process_template()
    template["variables"]["properties"]["command"]["default"] = f"python -m {PACKAGE}.idle_engine prefect.engine"
    async with get_client() as client:
        await client.update_work_pool("gpu", WorkPoolUpdate(base_job_template=template))


# --- Celery and Temporal ----------------------------------------------------------------------------------------------


@dataclass
class _Processes:
    """Started together, stopped together; their output goes into the folder."""

    folder: Path
    environment: dict[str, str]
    commands: dict[str, list[str]] = field(default_factory=dict)
    running: dict[str, "subprocess.Popen[bytes]"] = field(default_factory=dict)

    def start(self, name: str, *command: str) -> int:
        self.commands[name] = list(command)
        with (self.folder / f"{name}.log").open("ab") as log:
            self.running[name] = subprocess.Popen(
                command, env=self.environment, cwd=self.folder, stdout=log, stderr=log, start_new_session=True
            )
        return self.running[name].pid

    def kill_and_start(self, name: str) -> int:
        _kill(self.running[name].pid)
        self.running[name].wait()
        return self.start(name, *self.commands[name])

    def stop(self) -> None:
        for process in reversed(self.running.values()):
            process.send_signal(signal.SIGTERM)
            stop_tree(process)


@dataclass
class CeleryRedis(Contender):
    """Celery's workers, Redis as its broker."""

    processes: _Processes
    store: Path
    client: Celery

    async def upload(self, session_id: str, kind: str, path: Path) -> None:
        await asyncio.to_thread(self._upload, session_id, kind, path)

    def _upload(self, session_id: str, kind: str, path: Path) -> None:
        stored = _stored(self.store, session_id, kind, path)
        self.client.send_task("uploaded", (session_id, kind, str(stored)), ignore_result=True)

    def kill(self) -> None:
        self.parts[WORKERS][1] = self.processes.kill_and_start("compare")


@contextmanager
def celery_redis(kind: Kind, folder: Path) -> Iterator[CeleryRedis]:
    """Redis, a worker for uploads, a worker for comparisons."""
    server = shutil.which("redis-server") or "redis-server"
    with _postgresql() as cluster:
        port = _free_port()
        broker = f"redis://127.0.0.1:{port}/0"
        processes = _Processes(folder, _environment(cluster, kind) | {celery_app.BROKER: broker})
        client = Celery("client", broker=broker)
        worker = (sys.executable, "-m", "celery", "--app", f"{PACKAGE}.celery_app", "worker", "--loglevel", "INFO")
        try:
            # Celery's documentation: the broker must keep its messages.
            redis = processes.start(
                "redis", server, "--port", str(port), "--appendonly", "yes", "--dir", str(folder), "--save", ""
            )
            _listening(port)
            slots = str(os.cpu_count())
            first = processes.start("uploads", *worker, "--concurrency", slots, "--hostname", "uploads@%h")
            processes.environment["BENCHMARK_QUEUE"] = celery_app.COMPARE
            compare = ("--concurrency", slots, "--queues", celery_app.COMPARE, "--hostname", "compare@%h")
            second = processes.start("compare", *worker, *compare)
            parts = {SERVERS: [redis], WORKERS: [first, second], POSTGRESQL: [cluster.process.pid]}
            yield CeleryRedis(cluster.url("sessions"), parts, processes, folder, client)
        finally:
            client.close()
            processes.stop()


@dataclass
class Temporal(Contender):
    """Temporal's development server, and workers."""

    processes: _Processes
    store: Path
    address: str
    client: Client | None = None

    async def upload(self, session_id: str, kind: str, path: Path) -> None:
        client = await Client.connect(self.address, lazy=True) if self.client is None else self.client
        self.client = client
        stored = await asyncio.to_thread(_stored, self.store, session_id, kind, path)
        await client.start_workflow(
            temporal_app.Session.run,
            session_id,
            id=session_id,
            task_queue=temporal_app.SESSIONS,
            start_signal="uploaded",
            start_signal_args=[kind, str(stored)],
        )

    def kill(self) -> None:
        self.parts[WORKERS][1] = self.processes.kill_and_start("compare")


@contextmanager
def temporal(kind: Kind, folder: Path) -> Iterator[Temporal]:
    """The server with a database file, a worker for workflows, a worker for comparisons."""
    server = Path(sys.executable).parent / "temporal"
    with _postgresql() as cluster:
        port = _free_port()
        address = f"127.0.0.1:{port}"
        processes = _Processes(folder, _environment(cluster, kind))
        worker = (sys.executable, "-m", f"{PACKAGE}.temporal_app", address)
        try:
            options = ("--port", str(port), "--headless", "--db-filename", str(folder / "temporal.db"))
            development = processes.start("temporal", str(server), "server", "start-dev", *options)
            _listening(port)
            time.sleep(3)  # it listens before it serves
            sessions = processes.start("sessions", *worker, temporal_app.SESSIONS)
            compare = processes.start("compare", *worker, temporal_app.COMPARE)
            parts = {SERVERS: [development], WORKERS: [sessions, compare], POSTGRESQL: [cluster.process.pid]}
            yield Temporal(cluster.url("sessions"), parts, processes, folder, address)
        finally:
            processes.stop()


def _stored(store: Path, session_id: str, kind: str, path: Path) -> Path:
    target = store / f"{session_id}-{kind}{path.suffix}"
    shutil.copyfile(path, target)
    return target


def _environment(cluster: PostgreSQL, kind: Kind) -> dict[str, str]:
    cluster.create_database("sessions")
    url = cluster.url("sessions")
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(work.SCHEMA)
    state = str(Settings().state_dir.absolute())  # where the models are
    return {**os.environ, work.DATABASE: url, work.COMPARISON: kind, "KYCFLOW_STATE_DIR": state}


@contextmanager
def _postgresql() -> Iterator[PostgreSQL]:
    """One that keeps what it says it has kept, as the others' stores do."""
    with postgresql() as cluster:
        with psycopg.connect(cluster.url("postgres"), autocommit=True) as connection:
            connection.execute("ALTER SYSTEM SET fsync = on")
            connection.execute("SELECT pg_reload_conf()")
        yield cluster


# --- all --------------------------------------------------------------------------------------------------------------


def _kill(pid: int) -> None:
    process = psutil.Process(pid)
    for one in [process, *process.children(recursive=True)]:
        try:
            one.kill()
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs([process], timeout=10)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


def _listening(port: int) -> None:
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=1):
                return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)
