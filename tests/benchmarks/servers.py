"""Prefect's server for benchmarks, as one process or scaled: API processes, background services, PostgreSQL, Redis.

Scaled as https://docs.prefect.io/v3/advanced/self-hosted has it; settings' names as read in Prefect 3.8.8 and
prefect-redis 0.3.0.
"""

import importlib.util
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from deployments.server_load import LOAD_VARIABLES
from deployments.stack import LOOPBACK
from deployments.stopping import stop_tree
from tests.chaos.postgresql import PostgreSQL
from tests.prefect_server import prefect_server, without_settings
from tests.services import missing
from tests.system import eventually

REPOSITORY = Path(__file__).parents[2]
START_SECONDS = 60
API, SERVICES, POSTGRESQL, REDIS = "API", "services", "PostgreSQL", "Redis"


@dataclass(frozen=True)
class Servers:
    """Where the API is, and the process at the top of each part."""

    address: str
    parts: Mapping[str, psutil.Process]

    def cpu(self) -> dict[str, float]:
        """Seconds of processor time that each part has used."""
        return {part: cpu(process) for part, process in self.parts.items()}


@dataclass(frozen=True)
class Redis:
    """Its address, and its process."""

    url: str
    process: psutil.Process


def cpu(process: psutil.Process) -> float:
    """Seconds of processor time that a process and all it has started have used, those that have ended included."""
    used = 0.0
    for one in [process, *process.children(recursive=True)]:
        with suppress(psutil.NoSuchProcess):
            times = one.cpu_times()
            used += times.user + times.system + times.children_user + times.children_system
    return used


@contextmanager
def redis(folder: Path) -> Iterator[Redis]:
    """A Redis of its own that keeps nothing on disk; stopped at the end."""
    program = shutil.which("redis-server")
    if program is None:
        missing("redis-server is not on PATH")
    if importlib.util.find_spec("prefect_redis") is None:
        missing("prefect-redis is not installed; `make bench-scale` installs it")
    with socket.create_server((LOOPBACK, 0)) as free:
        port = free.getsockname()[1]
    command = [program, "--port", str(port), "--bind", LOOPBACK, "--save", "", "--appendonly", "no"]
    with (folder / "redis.log").open("wb") as log:
        process = subprocess.Popen([*command, "--dir", str(folder)], stdout=log, stderr=log, start_new_session=True)
    try:
        eventually(lambda: _answers(port) or None, START_SECONDS)
        yield Redis(f"redis://{LOOPBACK}:{port}", psutil.Process(process.pid))
    finally:
        stop_tree(process)


def _answers(port: int) -> bool:
    try:
        with socket.create_connection((LOOPBACK, port), timeout=1) as connection:
            connection.sendall(b"PING\r\n")
            return connection.recv(7) == b"+PONG\r\n"
    except OSError:
        return False


def scaled_variables(url: str) -> dict[str, str]:
    """What several processes of Prefect's server are told, for a Redis of their own: its address without a database."""
    return {
        "PREFECT_MESSAGING_BROKER": "prefect_redis.messaging",
        "PREFECT_MESSAGING_CACHE": "prefect_redis.messaging",
        "PREFECT_SERVER_EVENTS_CAUSAL_ORDERING": "prefect_redis.ordering",
        "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect_redis.lease_storage",
        "PREFECT_SERVER_WORKER_CHANNEL_CLEANUP_QUEUE_STORAGE": "prefect_redis.cleanup_queue",
        "PREFECT_REDIS_MESSAGING_URL": f"{url}/0",
        "PREFECT_REDIS_WORKER_CLEANUP_QUEUE_URL": f"{url}/0",
        "PREFECT_SERVER_DOCKET_URL": f"{url}/1",
        # One by one is Prefect's default, and takes more of the services' processor time.
        "PREFECT_SERVER_SERVICES_EVENT_PERSISTER_READ_BATCH_SIZE": "50",
        "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_READ_BATCH_SIZE": "50",
        "PREFECT_SERVER_SERVICES_TRIGGERS_READ_BATCH_SIZE": "50",
    }


@contextmanager
def servers_of(home: Path, processes: int, database: PostgreSQL, between: Redis | None) -> Iterator[Servers]:
    """Prefect's server with so many API processes; without a Redis between them it is one, with all services in it."""
    url = database.url("prefect").replace("postgresql://", "postgresql+asyncpg://")
    variables = {"PREFECT_SERVER_DATABASE_CONNECTION_URL": url, **LOAD_VARIABLES}
    parts = {POSTGRESQL: database.process}
    arguments: list[str] = []
    if between is not None:
        parts[REDIS] = between.process
        variables |= scaled_variables(between.url)
        arguments = ["--no-services", "--processes", str(processes)]
    with ExitStack() as exits:
        address = exits.enter_context(prefect_server(home, *arguments, **variables))
        parts[API] = _child("deployments.prefect_server")
        if between is not None:
            parts[SERVICES] = exits.enter_context(_services(home, variables))
        yield Servers(address, parts)


def _child(module: str) -> psutil.Process:
    (found,) = (child for child in psutil.Process().children() if module in child.cmdline())
    return found


@contextmanager
def _services(home: Path, variables: Mapping[str, str]) -> Iterator[psutil.Process]:
    command = [sys.executable, "-m", "prefect", "server", "services", "start"]
    environment = {**without_settings(), **variables, "PREFECT_HOME": str(home)}
    with (home / "services.log").open("wb") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
    try:
        yield psutil.Process(process.pid)
    finally:
        stop_tree(process)
