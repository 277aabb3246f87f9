"""The wheel, installed into an environment of its own, in a folder whose files have the names of its packages."""

import json
import os
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from deployments.demo_media import DemoMedia
from deployments.listening import listen
from deployments.stack import LOOPBACK, Addresses, running
from deployments.stopping import STOP_SECONDS, stop_tree
from tasks.settings import Settings
from tests.readme import CHECKOUT
from tests.system import DECISION_SECONDS, IN_THE_BACKGROUND, START_SECONDS, eventually

PACKAGES = ("tasks", "flows", "deployments")
SPARE_SECONDS = 3
"""For a machine that is busy with other tests."""


@dataclass(frozen=True)
class Installed:
    """An environment with the wheel, and the folder that a user works in."""

    program: Path
    folder: Path
    home: Path
    environment: dict[str, str]

    def run(
        self, *arguments: str, folder: Path | str | None = None, **variables: str
    ) -> subprocess.CompletedProcess[str]:
        """`kycflow` with these arguments."""
        return subprocess.run(
            [self.program, *arguments],
            cwd=folder or self.folder,
            env=self.environment | variables,
            capture_output=True,
            text=True,
            timeout=DECISION_SECONDS,
            check=False,
        )

    @contextmanager
    def start(self, *arguments: str, **variables: str) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
        """The same, left running as a script leaves it; the process, and the file with what it says."""
        said = self.folder.parent / f"{arguments[0]}.log"
        with said.open("wb") as log:
            process = subprocess.Popen(
                [*IN_THE_BACKGROUND, self.program, *arguments],
                cwd=self.folder,
                env=self.environment | variables,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        try:
            yield process, said
        finally:
            stop_tree(process)


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment with the wheel; dependencies are those of this process, the editable install is not."""
    folder = tmp_path_factory.mktemp("environment")
    build = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)]
    subprocess.run(build, cwd=CHECKOUT, check=True, capture_output=True, timeout=60)
    (wheel,) = folder.glob("*.whl")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder / "venv")], check=True, timeout=60)
    python = folder / "venv" / "bin" / "python"
    install = [sys.executable, "-m", "pip", "--python", str(python), "install", "--no-index", "--no-deps", str(wheel)]
    subprocess.run(install, check=True, capture_output=True, timeout=120)
    (own,) = (folder / "venv" / "lib").glob("python*/site-packages")
    # What stands in a .pth file comes last, and the .pth files in there (of editable installs) are not looked at.
    (own / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    return folder / "venv"


@pytest.fixture
def installed(environment: Path, tmp_path: Path, weights: list[Path]) -> Installed:
    """An empty home, and a folder with hostile files."""
    folder, home = tmp_path / "work", tmp_path / "home"
    folder.mkdir()
    home.mkdir()
    for package in PACKAGES:
        (folder / f"{package}.py").write_text("raise SystemExit('taken from the current folder')\n")
    variables = {
        "PATH": os.pathsep.join([str(environment / "bin"), os.defpath]),
        "HOME": str(home),
        "KYCFLOW_MODELS_FOLDER": str(weights[0].parent),
    }
    return Installed(environment / "bin" / "kycflow", folder, home, variables)


def test_it_is_the_wheel_that_is_tested(installed: Installed) -> None:
    script = "import tasks, flows, deployments; print(tasks.__file__, flows.__file__, deployments.__file__)"
    command = [str(installed.program.with_name("python")), "-P", "-c", script]
    found = subprocess.run(command, env=installed.environment, check=True, capture_output=True, text=True, timeout=60)
    environment = str(installed.program.parents[1])
    assert [path.startswith(environment) for path in found.stdout.split()] == [True] * len(PACKAGES), found.stdout


def test_kycflow_up_takes_a_session_to_its_decision(
    installed: Installed, demo_media: DemoMedia, tmp_path: Path
) -> None:
    files = (str(demo_media.genuine_card), str(demo_media.selfie_video))
    settings = Settings(state_dir=installed.folder / ".kycflow")
    with installed.start("up") as (up, said):

        def ready() -> Addresses | None:
            assert up.poll() is None, said.read_text()
            return running(settings)

        system = eventually(ready, START_SECONDS)
        submitted = installed.run("submit", *files, "--json")
        assert submitted.returncode == 0, submitted.stderr + said.read_text()
        assert json.loads(submitted.stdout)["decision"] == "match"
        doctor = installed.run("doctor", "--json")
        assert doctor.returncode == 0, doctor.stdout

        # From another folder, nobody's pictures go to this system because it happens to be there.
        elsewhere = installed.run("submit", *files, folder=tmp_path, KYCFLOW_API_PORT=system.upload_api.split(":")[-1])
        assert (elsewhere.returncode, "runs from another folder" in elsewhere.stderr) == (2, True), elsewhere.stderr

        up.send_signal(signal.SIGINT)
        begin = time.monotonic()
        assert up.wait(60) == 0, said.read_text()
        assert time.monotonic() - begin < STOP_SECONDS + SPARE_SECONDS
        assert "Stopping: " in said.read_text()
    assert {path.name for path in installed.folder.iterdir()} == {".kycflow", *(f"{name}.py" for name in PACKAGES)}


def test_each_part_by_itself_takes_a_session_to_its_decision(
    installed: Installed, demo_media: DemoMedia, tmp_path: Path
) -> None:
    with listen(LOOPBACK, 21_000, ports=100) as one, listen(LOOPBACK, 21_100, ports=100) as other:
        prefect, uploads = one.getsockname()[1], other.getsockname()[1]
    variables = {
        "PREFECT_API_URL": f"http://{LOOPBACK}:{prefect}/api",
        "PREFECT_HOME": str(tmp_path / "prefect"),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "KYCFLOW_API_URL": f"http://{LOOPBACK}:{uploads}",
    }
    assert installed.run("models", "pull").returncode == 0
    with ExitStack() as exits:
        _, said = exits.enter_context(installed.start("server", "--port", str(prefect), **variables))
        eventually(lambda: "listens at" in said.read_text() or None, START_SECONDS)
        deployed = installed.run("deploy", **variables)
        assert deployed.returncode == 0, deployed.stderr
        exits.enter_context(installed.start("worker", "--pool", "gpu", **variables))
        service, told = exits.enter_context(installed.start("serve", "--port", str(uploads), **variables))
        eventually(lambda: "service.listening" in told.read_text() or None, START_SECONDS)
        lines = [json.loads(line) for line in told.read_text().splitlines()]
        assert {"service.starting", "service.listening"} <= {line.get("action") for line in lines}
        assert lines[-1]["url"] == variables["KYCFLOW_API_URL"]

        taken = installed.run("serve", "--port", str(uploads), **variables)
        assert (taken.returncode, f"Port {uploads} is taken" in taken.stderr) == (2, True), taken.stderr

        submitted = installed.run(
            "submit", str(demo_media.genuine_card), str(demo_media.selfie_video), "--json", **variables
        )
        assert submitted.returncode == 0, submitted.stderr + (said.parent / "worker.log").read_text()
        assert json.loads(submitted.stdout)["decision"] == "match"
        service.send_signal(signal.SIGTERM)
        assert service.wait(60) == 0


def test_what_cannot_work_is_refused(installed: Installed, tmp_path: Path) -> None:
    alone = installed.run("serve", KYCFLOW_API_PORT="21200", PREFECT_HOME=str(tmp_path))
    assert (alone.returncode, "PREFECT_API_URL is not set" in alone.stderr) == (2, True), alone.stderr
    unshared = installed.run("server", "--processes", "2", PREFECT_HOME=str(tmp_path))
    assert (unshared.returncode, "need PostgreSQL and Redis" in unshared.stderr) == (2, True), unshared.stderr
