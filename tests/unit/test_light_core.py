"""Session workers and the upload service run without what only a worker that compares faces needs."""

import subprocess
import sys

import pytest

HEAVY = ("cv2", "deepface", "tensorflow", "onnxruntime", "numpy", "mtcnn", "scipy", "sklearn", "matplotlib")


@pytest.mark.parametrize(
    "module",
    [
        "flows.verify_session",
        "flows.compare_faces",
        "flows.evaluate_faces",
        "flows.sweep_sessions",
        "deployments.upload_service.app",
        "deployments.cli",
        "deployments.stack",
        "deployments.doctor",
    ],
)
def test_it_is_importable_without_the_engine(module: str) -> None:
    script = f"import sys; sys.modules.update(dict.fromkeys({HEAVY!r})); import {module}"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
