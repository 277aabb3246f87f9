"""`kycflow up` beside another one, and its end: as asked for, in time, whatever is broken."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil

from deployments.client import UploadClient
from deployments.demo_media import DemoMedia
from deployments.listening import STACK_HEADER
from deployments.stack import Addresses, running
from deployments.stopping import STOP_SECONDS, stop_tree
from tasks.settings import Settings
from tests.prefect_server import without_settings
from tests.system import IN_THE_BACKGROUND, START_SECONDS, eventually

SPARE_SECONDS = 3
"""For a machine that is busy with other tests."""
SESSIONS = 10


@dataclass(frozen=True)
class Up:
    """A `kycflow up`."""

    process: subprocess.Popen[bytes]
    settings: Settings
    said: Path

    def ready(self) -> Addresses:
        """Wait for it."""

        def look() -> Addresses | None:
            assert self.process.poll() is None, self.said.read_text()
            return running(self.settings)

        return eventually(look, START_SECONDS)

    def part(self, module: str) -> psutil.Process:
        """One of its processes."""
        (found,) = [one for one in psutil.Process(self.process.pid).children() if module in one.cmdline()]
        return found

    def end(self, number: signal.Signals) -> int:
        """Send a signal; the exit code. It says at once what it waits for, ends in time, and leaves nothing."""
        parts = psutil.Process(self.process.pid).children(recursive=True)
        assert len(parts) >= 4
        begin = time.monotonic()
        self.process.send_signal(number)
        eventually(lambda: "Stopping: " in self.said.read_text() or None, SPARE_SECONDS)
        code = self.process.wait(60)
        assert time.monotonic() - begin < STOP_SECONDS + SPARE_SECONDS, self.said.read_text()
        assert [one for one in parts if one.is_running()] == []
        return code


@contextmanager
def kycflow_up(folder: Path, weights_dir: Path) -> Iterator[Up]:
    """Start one as a script does, and do not wait for it."""
    folder.mkdir()
    variables = {
        "KYCFLOW_STATE_DIR": str(folder / "state"),
        "KYCFLOW_MODELS_FOLDER": str(weights_dir),
        "KYCFLOW_PREFECT_PORT": "23000",
        "KYCFLOW_API_PORT": "23000",
    }
    with (folder / "up.log").open("wb") as log:
        process = subprocess.Popen(
            [*IN_THE_BACKGROUND, sys.executable, "-m", "deployments.cli", "up"],
            env=without_settings() | variables,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        yield Up(process, Settings(state_dir=folder / "state"), folder / "up.log")
    finally:
        stop_tree(process)


def test_two_that_start_at_once_keep_apart_and_each_ends_in_time(
    tmp_path: Path, weights: list[Path], demo_media: DemoMedia
) -> None:
    with ExitStack() as exits:
        one, other = (exits.enter_context(kycflow_up(tmp_path / name, weights[0].parent)) for name in ("one", "other"))
        at, elsewhere = one.ready(), other.ready()
        urls = [url for found in (at, elsewhere) for url in (found.prefect_ui, found.upload_api)]
        assert len(set(urls)) == 4
        assert at.stack != elsewhere.stack
        for found in (at, elsewhere):
            for url in (f"{found.prefect_api}/health", f"{found.upload_api}/health"):
                assert httpx.get(url, timeout=30).headers[STACK_HEADER] == found.stack

        # A server that is started again is where it was, and requests wait for it.
        killed = one.part("deployments.prefect_server")
        killed.kill()
        psutil.wait_procs([killed], timeout=10)
        answer = httpx.get(f"{at.prefect_api}/health", timeout=60)
        assert (answer.status_code, answer.headers[STACK_HEADER]) == (200, at.stack)
        assert one.part("deployments.prefect_server").pid != killed.pid

        assert other.end(signal.SIGTERM) == 128 + signal.SIGTERM

        # Under load, with a Prefect server that answers nobody any more.
        with UploadClient(at.upload_api, one.settings) as client:
            for number in range(SESSIONS):
                client.create_session(f"load-{number}")
                client.upload(f"load-{number}", "id_image", demo_media.genuine_card)
                client.upload(f"load-{number}", "selfie_video", demo_media.selfie_video)
        server = one.part("deployments.prefect_server")
        os.kill(server.pid, signal.SIGSTOP)
        assert one.end(signal.SIGINT) == 0
        assert "prefect-server did not end in time and was killed." in one.said.read_text()
