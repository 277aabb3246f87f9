"""Nothing loads what only others need: workers without the engine, the upload service, a command that is typed."""

import os
import subprocess
import sys

import pytest

ENGINE = ("cv2", "deepface", "tensorflow", "onnxruntime", "numpy", "mtcnn", "scipy", "sklearn", "matplotlib")


@pytest.mark.parametrize(
    "module",
    [
        "flows.verify_session",
        "flows.purge_sessions",
        "flows.evaluate_faces",
        "flows.sweep_sessions",
        "deployments.upload_service.app",
        "deployments.cli",
        "deployments.stack",
        "deployments.doctor",
    ],
)
def test_it_is_importable_without_the_engine(module: str) -> None:
    script = f"import sys; sys.modules.update(dict.fromkeys({ENGINE!r})); import {module}"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("arguments", "needless"),
    [
        (["--help"], ("prefect", "sqlalchemy", "httpx", "pydantic_settings", "yaml")),
        (["submit", "--help"], ("prefect", "sqlalchemy", "httpx", "pydantic_settings", "yaml")),
        (["evaluate", "--help"], ("prefect", "sqlalchemy", "httpx", "pydantic_settings", "yaml")),
        (["status", "nobody"], ("prefect", "sqlalchemy")),
        (["models", "list"], ("prefect", "sqlalchemy")),
    ],
    ids=" ".join,
)
def test_a_command_loads_what_it_needs(arguments: list[str], needless: tuple[str, ...]) -> None:
    script = (
        "import contextlib, sys\n"
        "from deployments.cli import main\n"
        "with contextlib.suppress(SystemExit): main()\n"
        f"print(*sys.modules.keys() & {set((*needless, *ENGINE))!r}, file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        env={**os.environ, "KYCFLOW_API_URL": "http://127.0.0.1:9", "COLUMNS": "200"},  # nothing listens there
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (done.stdout + done.stderr).strip(), "it said nothing"
    assert done.stderr.splitlines()[-1] == "", done.stderr
