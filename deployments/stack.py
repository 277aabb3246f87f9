"""The whole system on one machine, no other service needed: Prefect's server, both workers, the upload service."""

import contextlib
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import httpx
from filelock import FileLock, Timeout

from deployments import listening
from deployments.prefect_access import access_variables
from deployments.provision import POOLS, RESIDENT, UPKEEP
from deployments.server_load import LOAD_VARIABLES
from deployments.server_retention import retention_variables
from deployments.stopping import STOP_SECONDS, stop_trees
from tasks.errors import ConfigurationError
from tasks.faces.models import pull
from tasks.settings import Settings

FOUND = "stack.json"
CSRF = ("PREFECT_SERVER_API_CSRF_PROTECTION_ENABLED", "PREFECT_SERVER_CSRF_PROTECTION_ENABLED")
# Of Prefect's server: its login goes over plain HTTP.
LOOPBACK = "127.0.0.1"
SERVER, UPLOADS = "prefect-server", "upload-service"
PORTS = 100
"""How many ports are tried, from the one that is set."""
START_SECONDS = 90
CLIENTS_SECONDS = 7
"""Of STOP_SECONDS, what all parts but Prefect's server have: they tell it how their work ended."""
LOOK_SECONDS = 0.5
"""How long Prefect's server may take to say what runs: Ctrl-C says at once what it waits for."""
SOON_SECONDS = 10
"""A process that ends so early, a database that is away for instance, may end again: it is started later each time."""
LONGEST_PAUSE_SECONDS = 10


@dataclass(frozen=True)
class Addresses:
    """Where a running system is found. Kept in `stack.json` in the state folder while it runs."""

    prefect_ui: str
    upload_api: str
    stack: str
    """Id of the running system: each answer of its servers carries it in the header `kycflow-stack`."""

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


class Stack:
    """Processes started together and stopped together. Use as a context manager."""

    def __init__(
        self, settings: Settings, *, server_only: bool = False, say: Callable[[str], None] = lambda _: None
    ) -> None:
        """`server_only`: Prefect's server alone, with everything deployed. `say` is told what a stop waits for."""
        self._settings = settings
        self._say = say
        self._server_only = server_only
        self._logs = settings.state_dir / "logs"
        self._found = settings.state_dir / FOUND
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._sockets: dict[str, socket.socket] = {}
        self._commands: dict[str, tuple[str, ...]] = {}
        self._started: dict[str, float] = {}
        self._soon: dict[str, int] = {}
        """How often in a row a part has ended soon after its start."""
        self._again: dict[str, float] = {}
        """When parts that have ended are started again."""
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
        prefect = self._listen(SERVER, LOOPBACK, settings.prefect_port)
        uploads = self._listen(UPLOADS, settings.host, settings.api_port)
        stack = secrets.token_hex(8)
        self.addresses = Addresses(prefect, uploads, stack)
        self._environment = {**os.environ, **environment(settings, self.addresses)}

        # All at once, as importing takes most of their start, and the server first: it takes longest.
        self._run(SERVER, "deployments.prefect_server", "--stack", stack)
        self._run("deploy", "deployments.provision", "--patience", str(START_SECONDS), "--stack", stack)
        if not self._server_only:
            from tasks.database import database_for  # SQLAlchemy, which who only asks what runs does not need

            database_for(settings)
            self._run(UPLOADS, "deployments.upload_service.server", "--stack", stack)
            # They take up work when stack.json is there: all is deployed then, and missed sweeps are dropped.
            told = ("--after", str(self._found.absolute()), "--parent", str(os.getpid()))
            for pool, *_ in POOLS:
                self._run(f"worker-{pool}", "deployments.worker", "--pool", pool, *told)
        self._wait_for_end("deploy")
        if not self._server_only:
            self._wait_for_uploads()
            self._found.write_text(json.dumps(asdict(self.addresses)))
        self._ready = True

    def _listen(self, name: str, host: str, port: int) -> str:
        """Open the socket of a server, which keeps it when it is started again; its address."""
        self._sockets[name] = listening.listen(host, port, PORTS)
        return listening.address(self._sockets[name])

    def _run(self, name: str, module: str, *arguments: str) -> None:
        self._commands[name] = (module, *arguments)
        self._started[name] = time.monotonic()
        fds = [self._sockets[name].fileno()] if name in self._sockets else []
        with (self._logs / f"{name}.log").open("ab") as log:
            self._processes[name] = subprocess.Popen(
                [sys.executable, "-m", module, *arguments, *(f"--fd={fd}" for fd in fds)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self._settings.state_dir,
                pass_fds=fds,
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
            stop_trees([process], 0)
            raise
        if process.returncode != 0:
            said = self._log(name).read_text(errors="replace").strip().splitlines()[-1:]
            raise ConfigurationError(
                "\n".join([f"{name} ended with code {process.returncode}: see {self._log(name)}", *said])
            )

    def _wait_for_uploads(self) -> None:
        """Wait for the upload service of this very system."""
        url = f"{self.addresses.upload_api}/health"
        deadline = time.monotonic() + START_SECONDS
        with httpx.Client(timeout=2) as client:
            while time.monotonic() < deadline:
                self.check()
                with contextlib.suppress(httpx.TransportError):
                    answer = client.get(url)
                    if answer.is_success and answer.headers.get(listening.STACK_HEADER) == self.addresses.stack:
                        return
                time.sleep(0.1)
        raise ConfigurationError(
            f"{UPLOADS} did not answer at {url} within {START_SECONDS} s: see {self._log(UPLOADS)}"
        )

    def check(self) -> list[str]:
        """Start processes again that have ended by themselves, however often; the names of those just started.

        Raises:
            ConfigurationError: one has ended before all were ready, which another start would not mend.
        """
        again = []
        for name, process in list(self._processes.items()):
            if (code := process.poll()) is None:
                continue
            if not self._ready:
                raise ConfigurationError(f"{name} ended by itself with code {code}: see {self._log(name)}")
            if name not in self._again:
                now = time.monotonic()
                self._soon[name] = self._soon.get(name, 0) + 1 if now - self._started[name] < SOON_SECONDS else 0
                self._again[name] = now + min(self._soon[name], LONGEST_PAUSE_SECONDS)
            if time.monotonic() >= self._again[name]:
                del self._again[name]
                self._run(name, *self._commands[name])
                again.append(name)
        return again

    def pid(self, name: str) -> int:
        """Process id of a part: prefect-server, upload-service, worker-upkeep or worker-gpu."""
        return self._processes[name].pid

    def _log(self, name: str) -> Path:
        return self._logs / f"{name}.log"

    def stop(self) -> None:
        """Stop every process within STOP_SECONDS, Prefect's server last, and the flow runs that the workers started."""
        # A second Ctrl-C must not leave half of it running.
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        end = time.monotonic() + STOP_SECONDS
        if self._ready:
            self._say(f"Stopping: {', '.join(self._at_work())}")
        # A server that is gone already refuses connections from now on, in place of having its clients wait for it.
        for opened in self._sockets.values():
            opened.close()
        server = self._processes.pop(SERVER, None)
        self._end(list(self._processes), CLIENTS_SECONDS)
        if server is not None:
            self._processes[SERVER] = server
            self._end([SERVER], max(end - time.monotonic(), STOP_SECONDS - CLIENTS_SECONDS))
        self._found.unlink(missing_ok=True)
        self._lock.release()

    def _end(self, names: list[str], seconds: float) -> None:
        parts = {name: self._processes.pop(name) for name in names}
        late = stop_trees(parts.values(), seconds)
        for name, process in parts.items():
            if process in late:
                self._say(f"{name} did not end in time and was killed.")

    def _at_work(self) -> list[str]:
        """What is running, with the number of its flow runs where Prefect's server says it in time."""
        alive = [name for name, process in self._processes.items() if process.poll() is None]
        workers = {f"worker-{pool}": pool for pool, *_ in POOLS}
        counts = {name: self._count(workers[name]) for name in alive if name in workers and SERVER in alive}
        return [name + _in_words(counts.get(name)) for name in alive]

    def _count(self, pool: str) -> int | None:
        login = self._environment.get("PREFECT_API_AUTH_STRING", "").partition(":")
        try:
            return int(
                httpx.post(
                    f"{self.addresses.prefect_api}/flow_runs/count",
                    json={
                        "flow_runs": {"state": {"type": {"any_": ["RUNNING"]}}},
                        "work_pools": {"name": {"any_": [pool]}},
                    },
                    auth=(login[0], login[2]) if login[1] else None,
                    timeout=LOOK_SECONDS,
                )
                .raise_for_status()
                .json()
            )
        except httpx.HTTPError:
            return None


def _in_words(runs: int | None) -> str:
    return f" ({runs} run{'' if runs == 1 else 's'})" if runs else ""


def environment(settings: Settings, addresses: Addresses) -> dict[str, str]:
    """Environment of every process: Prefect's own settings, and ours with absolute paths.

    How Prefect's server bears load, and how long it keeps what, is for the operator to say: what is set already stays.
    """
    server = {**LOAD_VARIABLES, **retention_variables(settings.media_retention_days)}
    return {
        "KYCFLOW_STATE_DIR": str(settings.state_dir.absolute()),
        "PREFECT_HOME": str(settings.state_dir.absolute() / "prefect"),
        # Python looks for modules in the current folder no more, for flow runs' processes neither.
        "PYTHONSAFEPATH": "1",
        "PREFECT_API_URL": addresses.prefect_api,
        **access_variables(settings),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        # Else each client asks the server first whether it wants tokens.
        "PREFECT_CLIENT_CSRF_SUPPORT_ENABLED": str(any(os.environ.get(name) for name in CSRF)).lower(),
        "PREFECT_CLI_PROMPT": "false",
        # Runs are taken when they are due, at once.
        "PREFECT_WORKER_QUERY_SECONDS": "0.5" if settings.worker_type == RESIDENT else "1",
        "PREFECT_WORKER_PREFETCH_SECONDS": "0",
        # What tasks log is seen at their flow run in the UI.
        "PREFECT_LOGGING_EXTRA_LOGGERS": "tasks",
        # Not that each of them has ended, which the UI shows without a log.
        "PREFECT_LOGGING_LOGGERS_PREFECT_TASK_RUNS_LEVEL": "WARNING",
        "PYTHONUNBUFFERED": "1",
        **{name: os.environ.get(name, value) for name, value in server.items()},
    }


def _own(name: str, settings: Settings) -> dict[str, str]:
    """Environment of one process beside that of all. Sweeps need not begin at once, and asking costs the server.

    What the upload service logs about a flow run is in its own log: in the run's it would be a line for each call.
    """
    if name == UPLOADS:
        return {"PREFECT_LOGGING_EXTRA_LOGGERS": ""}
    resident = name == f"worker-{UPKEEP}" and settings.worker_type == RESIDENT
    return {"PREFECT_WORKER_QUERY_SECONDS": "2"} if resident else {}


@contextlib.contextmanager
def stack_or_running(settings: Settings) -> Iterator[Addresses]:
    """The system that runs already, left running; else one started now and stopped at the end."""
    if (found := running(settings)) is not None:
        yield found
        return
    with Stack(settings) as stack:
        yield stack.addresses
