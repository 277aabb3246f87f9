"""A Prefect server of a test's own, with nothing in it: what an operator has before `kycflow deploy`."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from deployments.prefect_access import SERVER_SECRET
from deployments.stack import LOOPBACK
from deployments.stopping import stop_tree
from tests.system import START_SECONDS, eventually


def without_settings() -> dict[str, str]:
    """This process's environment, without Prefect's settings and ours."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("KYCFLOW_", "PREFECT_"))}


@contextmanager
def prefect_server(home: Path, *arguments: str, **variables: str) -> Iterator[str]:
    """Start one, wait until it answers; its API's address. `variables` are its environment, beside the usual."""
    home.mkdir(parents=True)
    with socket.create_server((LOOPBACK, 0)) as free:
        port = free.getsockname()[1]
    address = f"http://{LOOPBACK}:{port}/api"
    user, _, password = variables.get(SERVER_SECRET, "").partition(":")
    login = (user, password) if user else None
    environment = without_settings()
    environment |= {"PREFECT_HOME": str(home), "PREFECT_SERVER_ANALYTICS_ENABLED": "false", **variables}

    with (home / "server.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "deployments.prefect_server", "--host", LOOPBACK, "--port", str(port), *arguments],
            env=environment,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )

    def ready() -> bool | None:
        assert process.poll() is None, (home / "server.log").read_text()
        try:
            # Its home, as another test run may have taken the port.
            answer = httpx.get(f"{address}/admin/settings", auth=login, timeout=5)
            return answer.json()["home"] == str(home) or None
        except httpx.TransportError:
            return None

    try:
        eventually(ready, START_SECONDS)
        yield address
    finally:
        stop_tree(process)
