"""The one door to DeepFace, TensorFlow and ONNX Runtime: how they are set up, what they may load, how they fail.

Their models are not safe to share between threads, so whoever calls one holds `LOCK`.
"""

import os
import re
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tasks.contracts import EngineConfig
from tasks.downloads import sha256_of
from tasks.errors import ComputeUnavailable, ConfigurationError
from tasks.faces.models import detector_named, recogniser_runtime

LOCK = threading.RLock()

_configured: tuple[str, str] | None = None
_DEVICE_TROUBLE = re.compile(
    "out of memory|cuda|cudnn|cublas|failed to allocate|insufficient memory|bad.?alloc|resource.exhausted|oom when",
    re.I,
)


def needs_tensorflow(config: EngineConfig) -> bool:
    """Whether one of the two models runs on TensorFlow, which takes 6 to 15 s to import."""
    runtimes = {detector_named(config.detector).runtime, recogniser_runtime(config.recogniser, config.backend)}
    return "tensorflow" in runtimes


def load_models(config: EngineConfig, weights_dir: Path) -> tuple[Any, Any]:
    """DeepFace's (detector, recogniser) objects, on weights whose SHA-256 was checked.

    Raises ConfigurationError: weights missing or wrong, a package that is not installed, or a process whose DeepFace
    is already set up for another backend or folder. Raises ComputeUnavailable when the GPU does not take the models.
    """
    with LOCK:
        _set_up(config.backend, weights_dir)
        files = {name: _verified(name, sha256, weights_dir) for name, sha256 in config.weights_sha256.items()}
        try:
            with warnings.catch_warnings():  # importing DeepFace turns every warning of the process off
                from deepface import DeepFace
                from deepface.commons import weight_utils
        except ImportError as exc:
            raise ConfigurationError(f"{exc}. Install kycflow with its extra `faces`.") from exc
        if needs_tensorflow(config):
            _grow_gpu_memory_as_needed()

        def give(file_name: str, source_url: object, compress_type: object = None) -> str:
            if file_name not in files:
                raise ConfigurationError(
                    f"DeepFace asked for {file_name}, which the engine's configuration has no sum of."
                )
            return str(files[file_name])

        # DeepFace asks this function for every weight file, and downloads what is missing. Here it never does.
        weight_utils.download_weights_if_necessary = give
        try:
            with device_errors():
                detector = DeepFace.build_model(task="face_detector", model_name=config.detector)
                return detector, DeepFace.build_model(task="facial_recognition", model_name=config.recogniser)
        except (ImportError, ValueError) as exc:
            raise ConfigurationError(
                f"DeepFace cannot build {config.detector} and {config.recogniser} on {config.backend}: {exc}"
            ) from exc


def device_of(recogniser: Any, config: EngineConfig) -> str:
    """What computes embeddings: "cuda" or "cpu"."""
    runtime = recogniser_runtime(config.recogniser, config.backend)
    if runtime == "onnx":
        return "cpu" if recogniser.model.get_providers()[0] == "CPUExecutionProvider" else "cuda"
    if runtime == "tensorflow":
        import tensorflow as tf

        return "cuda" if tf.config.list_physical_devices("GPU") else "cpu"
    return "cpu"


@contextmanager
def device_errors() -> Iterator[None]:
    """Translate what the native libraries raise when a device fails. Raises ComputeUnavailable."""
    try:
        yield
    except MemoryError as exc:
        raise ComputeUnavailable("Not enough memory to compare faces. Start fewer comparisons at once.") from exc
    except Exception as exc:
        if _DEVICE_TROUBLE.search(f"{exc} {exc.__cause__}"):  # DeepFace wraps what a model's loading raises
            raise ComputeUnavailable(f"The device that compares faces failed: {type(exc).__name__}: {exc}") from exc
        raise


def _set_up(backend: str, weights_dir: Path) -> None:
    global _configured  # noqa: PLW0603 - DeepFace reads its environment once a process, so this is the process's too
    home = weights_dir.parent.parent
    if weights_dir != home / ".deepface" / "weights":
        raise ConfigurationError(f"The weights folder is {weights_dir}. DeepFace wants it to end in .deepface/weights.")
    if _configured not in {None, (backend, str(home))}:
        raise ConfigurationError(
            f"DeepFace is set up for {_configured} in this process, which cannot change to {(backend, str(home))}. "
            "Use another process."
        )
    os.environ["DEEPFACE_HOME"] = str(home)
    os.environ["DEEPFACE_BACKEND_ENGINE"] = backend
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("OPENCV_LOG_LEVEL", "ERROR")  # OpenCV 5 warns at each start that it runs on the CPU
    _configured = (backend, str(home))


def _verified(name: str, sha256: str, weights_dir: Path) -> Path:
    path = weights_dir / name
    if not path.is_file():
        raise ConfigurationError(f"{path} is missing. Run `kycflow models pull`.")
    if sha256_of(path) != sha256:
        raise ConfigurationError(f"{path} has another SHA-256 than pinned. Run `kycflow models pull`.")
    return path


def _grow_gpu_memory_as_needed() -> None:
    """Before first use; TensorFlow takes the whole GPU otherwise."""
    import tensorflow as tf

    for gpu in tf.config.list_physical_devices("GPU"):
        tf.config.experimental.set_memory_growth(gpu, True)
