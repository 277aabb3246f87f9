"""The whole system on one machine, no other service needed: Prefect's server, both workers, the upload service."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import httpx
import psutil
from filelock import FileLock, Timeout

from deployments.provision import GPU, POOLS, RESIDENT, SESSIONS, sessions_pool
from deployments.server_load import LOAD_VARIABLES
from deployments.server_retention import retention_variables
from tasks.database import database_for
from tasks.errors import ConfigurationError
from tasks.faces.models import pull
from tasks.settings import Settings

FOUND = "stack.json"
CSRF = ("PREFECT_SERVER_API_CSRF_PROTECTION_ENABLED", "PREFECT_SERVER_CSRF_PROTECTION_ENABLED")
LOG_CONFIG = Path(__file__).parent / "upload_service" / "log_config.json"
# Prefect's server has no login, and who reaches it can run code on its workers.
LOOPBACK = "127.0.0.1"
START_SECONDS = 90
STOP_SECONDS = 10
# A process that ends so early may end again: it is not started again without end.
SOON_SECONDS = 10
MOST_SOON = 5


@dataclass(frozen=True)
class Addresses:
    """Where a running system is found. Kept in `stack.json` in the state folder while it runs."""

    prefect_ui: str
    upload_api: str

    @property
    def prefect_api(self) -> str:
        """The value of PREFECT_API_URL."""
        return f"{self.prefect_ui}/api"


def running(settings: Settings) -> Addresses | None:
    """The system that runs from this state folder; None when none does."""
    try:
        found = Addresses(**json.loads((settings.state_dir / FOUND).read_text()))
    except (OSError, ValueError, TypeError):
        return None
    lock = FileLock(settings.state_dir / "stack.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return found
    # Nobody holds the lock: the file is what a killed system left behind.
    lock.release()
    return None


def free_port(host: str, preferred: int, *taken: int) -> int:
    """The preferred port, or the next one that is free and not in `taken`."""
    for port in range(preferred, preferred + 100):
        if port in taken:
            continue
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with contextlib.suppress(OSError):
                probe.bind((host, port))
                return port
    raise ConfigurationError(f"Ports {preferred} to {preferred + 99} are all taken: set another one.")


class Stack:
    """Processes started together and stopped together. Use as a context manager."""

    def __init__(self, settings: Settings, *, server_only: bool = False) -> None:
        """`server_only`: Prefect's server alone, with everything deployed."""
        self._settings = settings
        self._server_only = server_only
        self._logs = settings.state_dir / "logs"
        self._found = settings.state_dir / FOUND
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._commands: dict[str, tuple[str, ...]] = {}
        self._started: dict[str, float] = {}
        self._soon: dict[str, int] = {}
        self._ready = False
        self._environment: dict[str, str] = {}
        self._lock = FileLock(settings.state_dir / "stack.lock")
        self.addresses: Addresses

    def __enter__(self) -> "Stack":
        for folder in (self._settings.state_dir, self._logs):
            folder.mkdir(parents=True, exist_ok=True)
            folder.chmod(0o700)  # whoever made it: Prefect's database in it is readable to others by itself
        try:
            self._lock.acquire(timeout=0)
        except Timeout as exc:
            raise ConfigurationError(
                f"kycflow already runs from {self._settings.state_dir}: stop it first, or set KYCFLOW_STATE_DIR."
            ) from exc
        try:
            self._start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _start(self) -> None:
        settings = self._settings
        pull(settings)
        self._found.unlink(missing_ok=True)  # what a killed system left behind
        host = settings.host
        prefect_port = free_port(LOOPBACK, settings.prefect_port)
        api_port = free_port(host, settings.api_port, prefect_port)
        self.addresses = Addresses(
            prefect_ui=f"http://{LOOPBACK}:{prefect_port}", upload_api=f"http://{host}:{api_port}"
        )
        self._environment = {**os.environ, **environment(settings, self.addresses)}

        # All at once, as importing takes most of their start, and the server first: it takes longest.
        self._run("prefect-server", "deployments.prefect_server", "--host", LOOPBACK, "--port", str(prefect_port))
        self._run("deploy", "deployments.provision", "--patience", str(START_SECONDS))
        if not self._server_only:
            database_for(settings)
            self._run(
                "upload-service",
                *("uvicorn", "--factory", "deployments.upload_service.app:create_app"),
                *("--host", host, "--port", str(api_port), "--no-access-log", "--log-config", str(LOG_CONFIG)),
            )
            # They take up work when stack.json is there: all is deployed then, and missed sweeps are dropped.
            told = ("--after", str(self._found.absolute()), "--parent", str(os.getpid()))
            for pool, *_ in POOLS:
                self._run(f"worker-{pool}", "deployments.worker", "--pool", pool, *told)
        self._wait_for_end("deploy")
        if not self._server_only:
            self._wait_for("upload-service", f"{self.addresses.upload_api}/health")
            self._found.write_text(json.dumps(asdict(self.addresses)))
        self._ready = True

    def _run(self, name: str, module: str, *arguments: str) -> None:
        self._commands[name] = (module, *arguments)
        self._started[name] = time.monotonic()
        with (self._logs / f"{name}.log").open("ab") as log:
            self._processes[name] = subprocess.Popen(
                [sys.executable, "-m", module, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self._settings.state_dir,
                env={**self._environment, **_own(name, self._settings)},
                # Ctrl-C in the terminal reaches this process only, which then stops the others in order.
                start_new_session=True,
            )

    def _wait_for_end(self, name: str) -> None:
        """Wait for the one part that is to end."""
        process = self._processes.pop(name)
        try:
            while process.poll() is None:
                self.check()
                time.sleep(0.05)
        except BaseException:
            stop_tree(process)
            raise
        if process.returncode != 0:
            raise ConfigurationError(f"{name} ended with code {process.returncode}: see {self._log(name)}")

    def _wait_for(self, name: str, url: str) -> None:
        deadline = time.monotonic() + START_SECONDS
        with httpx.Client(timeout=2) as client:
            while time.monotonic() < deadline:
                self.check()
                with contextlib.suppress(httpx.TransportError):
                    if client.get(url).is_success:
                        return
                time.sleep(0.1)
        raise ConfigurationError(f"{name} did not answer at {url} within {START_SECONDS} s: see {self._log(name)}")

    def check(self) -> list[str]:
        """Start processes again that have ended by themselves; their names.

        Raises:
            ConfigurationError: one has ended soon after its start again and again, which another start would not mend.
        """
        ended = [(name, code) for name, process in self._processes.items() if (code := process.poll()) is not None]
        for name, code in ended:
            soon = time.monotonic() - self._started[name] < SOON_SECONDS
            self._soon[name] = self._soon.get(name, 0) + 1 if soon else 0
            if self._soon[name] > MOST_SOON or not self._ready:
                raise ConfigurationError(f"{name} ended by itself with code {code}: see {self._log(name)}")
            self._run(name, *self._commands[name])
        return [name for name, _ in ended]

    def pid(self, name: str) -> int:
        """Process id of a part: prefect-server, upload-service, worker-sessions or worker-gpu."""
        return self._processes[name].pid

    def _log(self, name: str) -> Path:
        return self._logs / f"{name}.log"

    def stop(self) -> None:
        """Stop every process, last started first, and the flow runs that the workers started."""
        # A second Ctrl-C must not leave half of it running.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        while self._processes:
            _, process = self._processes.popitem()
            stop_tree(process)
        self._found.unlink(missing_ok=True)
        self._lock.release()


def stop_tree(process: subprocess.Popen[bytes]) -> None:
    """Ask a process to end, give it STOP_SECONDS, then kill it and all it has started."""
    try:
        tree = psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        tree = []
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(signal.SIGINT)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(STOP_SECONDS)
    for child in tree:
        with contextlib.suppress(psutil.NoSuchProcess):
            child.kill()
    # The group goes last: it holds whatever was started after the list was made.
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    psutil.wait_procs(tree, timeout=STOP_SECONDS)


def environment(settings: Settings, addresses: Addresses) -> dict[str, str]:
    """Environment of every process: Prefect's own settings, and ours with absolute paths.

    How Prefect's server bears load, and how long it keeps what, is for the operator to say: what is set already stays.
    """
    server = {**LOAD_VARIABLES, **retention_variables(settings.media_retention_days)}
    return {
        "KYCFLOW_STATE_DIR": str(settings.state_dir.absolute()),
        "PREFECT_HOME": str(settings.state_dir.absolute() / "prefect"),
        "PREFECT_API_URL": addresses.prefect_api,
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        # Else each client asks the server first whether it wants tokens.
        "PREFECT_CLIENT_CSRF_SUPPORT_ENABLED": str(any(os.environ.get(name) for name in CSRF)).lower(),
        "PREFECT_CLI_PROMPT": "false",
        # Runs are taken when they are due, at once.
        "PREFECT_WORKER_QUERY_SECONDS": "0.5" if settings.worker_type == RESIDENT else "1",
        "PREFECT_WORKER_PREFETCH_SECONDS": "0",
        # What tasks log is seen at their flow run in the UI.
        "PREFECT_LOGGING_EXTRA_LOGGERS": "tasks",
        "PYTHONUNBUFFERED": "1",
        **{name: os.environ.get(name, value) for name, value in server.items()},
    }


def _own(name: str, settings: Settings) -> dict[str, str]:
    """Environment of one process beside that of all. Sweeps need not begin at once, and asking costs the server."""
    upkeep_only = name == f"worker-{SESSIONS}" and sessions_pool(settings) == GPU and settings.worker_type == RESIDENT
    return {"PREFECT_WORKER_QUERY_SECONDS": "2"} if upkeep_only else {}


@contextlib.contextmanager
def stack_or_running(settings: Settings) -> Iterator[Addresses]:
    """The system that runs already, left running; else one started now and stopped at the end."""
    if (found := running(settings)) is not None:
        yield found
        return
    with Stack(settings) as stack:
        yield stack.addresses
