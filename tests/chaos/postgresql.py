"""A PostgreSQL cluster of its own on a free port of this machine, which a test may stop and start again."""

import os
import pwd
import random
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import psutil
import psycopg
import pytest
from psycopg import sql

from tasks.database.schema import upgrade
from tests.services import missing

WAIT_SECONDS = 60
SETTINGS = """
listen_addresses = '127.0.0.1'
port = {port}
unix_socket_directories = ''
max_connections = 200
fsync = off
"""


@dataclass(frozen=True)
class PostgreSQL:
    """Its programs, its folder, its port, and the user that it runs as: None for the one of this process."""

    programs: Path
    folder: Path
    port: int
    user: pwd.struct_passwd | None

    def url(self, database: str) -> str:
        """Of a database, which need not exist yet."""
        return f"postgresql://postgres@127.0.0.1:{self.port}/{database}"

    @property
    def process(self) -> psutil.Process:
        """The one that all others of it descend from, while it runs."""
        return psutil.Process(int((self._data / "postmaster.pid").read_text().split()[0]))

    def create_database(self, name: str) -> None:
        """An empty one."""
        with psycopg.connect(self.url("postgres"), autocommit=True, connect_timeout=5) as admin:
            admin.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))

    def start(self) -> None:
        """Returns when it takes connections."""
        self._run("pg_ctl", "start", "-w", f"-t{WAIT_SECONDS}", f"-D{self._data}", f"-l{self._log}")

    def stop(self, mode: Literal["fast", "immediate"] = "fast") -> None:
        """Cuts all connections. After `immediate` it recovers at the next start, as after a crash."""
        self._run("pg_ctl", "stop", "-w", f"-t{WAIT_SECONDS}", f"-D{self._data}", f"-m{mode}")

    def restart(self, mode: Literal["fast", "immediate"] = "fast") -> float:
        """Cuts all connections; the seconds until it took new ones."""
        began = time.monotonic()
        self.stop(mode)
        self.start()
        return time.monotonic() - began

    def _create(self) -> None:
        self._run("initdb", f"-D{self._data}", "-Upostgres", "-Atrust", "-EUTF8", "--no-locale", "--no-sync")
        with (self._data / "postgresql.conf").open("a") as settings:
            settings.write(SETTINGS.format(port=self.port))

    @property
    def _data(self) -> Path:
        return self.folder / "data"

    @property
    def _log(self) -> Path:
        return self.folder / "log"

    def _run(self, program: str, *arguments: str) -> None:
        done = subprocess.run(
            [str(self.programs / program), *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            cwd=self.folder,  # the user may not enter this process's folder
            timeout=3 * WAIT_SECONDS,
            user=self.user and self.user.pw_uid,
            group=self.user and self.user.pw_gid,
            extra_groups=[] if self.user else None,
        )
        if done.returncode:
            log = self._log.read_text()[-2000:] if self._log.exists() else ""
            raise RuntimeError(f"{program} {arguments[0]} fails: {done.stdout}{done.stderr}{log}")


def serve_everything(server: PostgreSQL, patch: pytest.MonkeyPatch) -> None:
    """Have processes that are started from now on use it for kycflow's and for Prefect's database."""
    for name in ("kycflow", "prefect"):
        server.create_database(name)
    upgrade(server.url("kycflow"))
    patch.setenv("KYCFLOW_DATABASE_URL", server.url("kycflow"))
    prefect = server.url("prefect").replace("postgresql://", "postgresql+asyncpg://")
    patch.setenv("PREFECT_SERVER_DATABASE_CONNECTION_URL", prefect)


@contextmanager
def postgresql() -> Iterator[PostgreSQL]:
    """Start a new cluster, and stop and remove it in the end."""
    programs, user = _programs(), _user()
    # Not in TMPDIR: everyone may enter /tmp, so the user that PostgreSQL runs as may, too.
    with tempfile.TemporaryDirectory(prefix="kycflow-postgresql-", dir="/tmp") as folder:
        if user:
            os.chown(folder, user.pw_uid, user.pw_gid)
        server = PostgreSQL(programs, Path(folder), _free_port(), user)
        server._create()
        try:
            server.start()
            yield server
        finally:
            if (server._data / "postmaster.pid").exists():
                server.stop("immediate")


def _programs() -> Path:
    on_path = shutil.which("pg_ctl")
    folders = [Path(on_path).resolve().parent] if on_path else []
    debian = [path for path in Path("/usr/lib/postgresql").glob("*/bin") if path.parent.name.isdigit()]
    folders += sorted(debian, key=lambda path: int(path.parent.name), reverse=True)
    for folder in folders:
        if all((folder / name).exists() for name in ("initdb", "pg_ctl", "postgres")):
            return folder
    missing("PostgreSQL's initdb and pg_ctl are neither on PATH nor in /usr/lib/postgresql")


def _user() -> pwd.struct_passwd | None:
    if os.geteuid() != 0:
        return None
    try:
        return pwd.getpwnam("postgres")
    except KeyError:
        missing("PostgreSQL does not run as root, and there is no user postgres")


def _free_port() -> int:
    """Below those of outgoing connections: one of them could take the port while the server is stopped."""
    while True:
        port = random.randrange(20000, 32000)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
