"""The one door to DeepFace, TensorFlow, PyTorch and ONNX Runtime: how they are set up, what they load, how they fail.

Pictures outside of it are RGB; DeepFace and OpenCV want BGR. What it gives out may be called from several threads.
"""

import os
import re
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from tasks.contracts import EngineConfig
from tasks.downloads import sha256_of
from tasks.errors import ComputeUnavailable, ConfigurationError, OutOfMemory
from tasks.faces.graphs import rewritten
from tasks.faces.models import Device, detector_named, recogniser_named
from tasks.faces.turns import Turns, frugal

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

LOCK = threading.RLock()
"""Held around all that is DeepFace's own: its models and its cache are not safe to share between threads."""

TURNS = Turns()
"""Of the device: all models of the process share it."""

_configured: tuple[str, str, str] | None = None
_TOO_LITTLE_MEMORY = re.compile(
    "out of memory|failed to allocate|insufficient memory|bad.?alloc|resource.exhausted|oom when|alloc_failed", re.I
)
_DEVICE_TROUBLE = re.compile("cuda|cudnn|cublas", re.I)


class Models(NamedTuple):
    """Loaded models. Each raises ComputeUnavailable when its device fails.

    `detector`: DeepFace's object of that name; `yunet`: the same model for the calling thread, when it is that one.
    `embed`: (n, height, width, 3) RGB crops in the recogniser's size to (n, d) embeddings, in their order.
    `is_real`: whether anti-spoofing takes the face in an RGB picture, at a box, for real; None when it is off.
    `device`: what computes embeddings, "cuda" or "cpu".
    """

    detector: Any
    yunet: "Callable[[], Any] | None"
    embed: "Callable[[NDArray[np.uint8]], NDArray[np.float64]]"
    is_real: "Callable[[NDArray[np.uint8], tuple[int, int, int, int]], bool] | None"
    device: str


def load_models(config: EngineConfig, weights_dir: Path, device: Device = "auto") -> Models:
    """The models of a configuration, on weights whose SHA-256 was checked.

    Raises ConfigurationError: weights missing or wrong, a package that is not installed, no GPU where `device` is
    "cuda", or a process whose DeepFace is already set up in another way. Raises ComputeUnavailable when the GPU does
    not take the models.
    """
    with LOCK:
        _set_up(config.backend, weights_dir, device)
        files = {name: _verified(name, sha256, config, weights_dir) for name, sha256 in config.weights_sha256.items()}
        try:
            with warnings.catch_warnings():  # importing DeepFace turns every warning of the process off
                from deepface import DeepFace
                from deepface.commons import weight_utils
        except ImportError as exc:
            raise ConfigurationError(f"{exc}. Install kycflow with its extra `faces`.") from exc
        if "tensorflow" in {detector_named(config.detector).runtime, config.backend}:
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
                recogniser = DeepFace.build_model(task="facial_recognition", model_name=config.recogniser)
                spoofing = DeepFace.build_model(task="spoofing", model_name="Fasnet") if config.anti_spoofing else None
                session = None
                if config.backend == "onnx":
                    session = _session(files[recogniser_named(config.recogniser).files["onnx"]], recogniser.model)
                    recogniser.model = session
        except (ImportError, ValueError) as exc:
            raise ConfigurationError(
                f"DeepFace cannot build {config.detector} and {config.recogniser} on {config.backend}: {exc}"
            ) from exc
        found = _device_of(recogniser, config)
        if device == "cuda" and found != "cuda":
            raise ConfigurationError(
                f"KYCFLOW_DEVICE is cuda, and {config.backend} sees no GPU here. Install requirements-cuda.lock, "
                "look at nvidia-smi, or set KYCFLOW_DEVICE to auto."
            )
        return Models(
            detector,
            _one_per_thread(files[detector_named("yunet").files[0]]) if config.detector == "yunet" else None,
            frugal(_sface(session) if config.recogniser == "SFace" else _deepface(config.recogniser), TURNS),
            None if spoofing is None else _spoofing(spoofing),
            found,
        )


def _one_per_thread(path: Path) -> Callable[[], Any]:
    """cv2's detector keeps the picture's size, so threads cannot share one. Its file has 0.2 MB."""
    import cv2

    local = threading.local()

    def yunet() -> Any:
        if not hasattr(local, "model"):
            local.model = cv2.FaceDetectorYN.create(str(path), "", (0, 0))
        return local.model

    return yunet


def _session(path: Path, published: Any) -> Any:
    """ONNX Runtime's session of the rewritten graph, on the providers that DeepFace chose. Safe to share."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    # Threads that wait in a loop take the cores from OpenCV, FFmpeg and the comparisons beside this one.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(rewritten(path), options, providers=published.get_providers())


def _sface(session: Any) -> "Callable[[NDArray[np.uint8]], NDArray[np.float64]]":
    """All faces in one batch, fed as cv2.FaceRecognizerSF.feature feeds one: RGB, 0 to 255, channels first."""
    name = session.get_inputs()[0].name

    def embed(crops: "NDArray[np.uint8]") -> "NDArray[np.float64]":
        import numpy as np

        batch = np.ascontiguousarray(crops.transpose(0, 3, 1, 2), dtype=np.float32)
        with device_errors():
            found: NDArray[np.float64] = session.run(None, {name: batch})[0].astype(np.float64)
        return found

    return embed


def _deepface(recogniser: str) -> "Callable[[NDArray[np.uint8]], NDArray[np.float64]]":
    """DeepFace's own way from crop to embedding, which has each model's normalisation."""

    def embed(crops: "NDArray[np.uint8]") -> "NDArray[np.float64]":
        import numpy as np
        from deepface import DeepFace

        with LOCK, device_errors():
            answer = DeepFace.represent(
                list(crops[..., ::-1]),
                model_name=recogniser,
                detector_backend="skip",
                align=False,
                enforce_detection=False,
            )
        # DeepFace nests one level less for a single picture.
        rows = [answer[0]["embedding"]] if len(crops) == 1 else [faces[0]["embedding"] for faces in answer]
        return np.asarray(rows, dtype=np.float64)

    return embed


def _spoofing(model: Any) -> "Callable[[NDArray[np.uint8], tuple[int, int, int, int]], bool]":
    def is_real(picture: "NDArray[np.uint8]", box: tuple[int, int, int, int]) -> bool:
        import numpy as np

        with LOCK, device_errors():
            return bool(model.analyze(np.ascontiguousarray(picture[..., ::-1]), box)[0])

    return is_real


def _device_of(recogniser: Any, config: EngineConfig) -> str:
    if config.backend == "onnx":
        return "cpu" if recogniser.model.get_providers()[0] == "CPUExecutionProvider" else "cuda"
    if config.backend == "tensorflow":
        import tensorflow as tf

        return "cuda" if tf.config.list_physical_devices("GPU") else "cpu"
    if config.backend == "pytorch":
        return "cuda" if recogniser.device.type == "cuda" else "cpu"
    return "cpu"


@contextmanager
def device_errors() -> Iterator[None]:
    """Translate what the native libraries raise when a device fails. Raises ComputeUnavailable, OutOfMemory."""
    try:
        yield
    except MemoryError as exc:
        raise OutOfMemory("Not enough memory to compare faces. Start fewer comparisons at once.") from exc
    except Exception as exc:
        told = f"{exc} {exc.__cause__}"  # DeepFace wraps what a model's loading raises
        if _TOO_LITTLE_MEMORY.search(told):
            raise OutOfMemory(f"Not enough memory to compare faces: {type(exc).__name__}: {exc}") from exc
        if _DEVICE_TROUBLE.search(told):
            raise ComputeUnavailable(f"The device that compares faces failed: {type(exc).__name__}: {exc}") from exc
        raise


def _set_up(backend: str, weights_dir: Path, device: Device) -> None:
    global _configured  # noqa: PLW0603 - these libraries read their environment once a process, so this is its too
    home = weights_dir.parent.parent
    if weights_dir != home / ".deepface" / "weights":
        raise ConfigurationError(f"The weights folder is {weights_dir}. DeepFace wants it to end in .deepface/weights.")
    if _configured not in {None, (backend, str(home), device)}:
        raise ConfigurationError(
            f"DeepFace is set up for {_configured} in this process, which cannot change to "
            f"{(backend, str(home), device)}. Use another process."
        )
    os.environ["DEEPFACE_HOME"] = str(home)
    os.environ["DEEPFACE_BACKEND_ENGINE"] = backend if backend in {"tensorflow", "pytorch"} else "onnx"
    if device == "cpu":
        os.environ["DEEPFACE_ONNX_PROVIDERS"] = "cpu"  # unset, it is CUDA where ONNX Runtime has it
        os.environ["CUDA_VISIBLE_DEVICES"] = "-1"  # for TensorFlow and PyTorch
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("OPENCV_LOG_LEVEL", "ERROR")  # OpenCV 5 warns at each start that it runs on the CPU
    _configured = (backend, str(home), device)


def _verified(name: str, sha256: str, config: EngineConfig, weights_dir: Path) -> Path:
    packaged = detector_named(config.detector).packaged
    path, remedy = weights_dir / name, "Run `kycflow models pull`."
    if name in packaged:
        spec = find_spec(packaged[name].package)
        folder = Path(spec.origin).parent if spec and spec.origin else weights_dir
        path, remedy = folder / packaged[name].path, f"Install the package {packaged[name].package} of the lock file."
    if not path.is_file():
        raise ConfigurationError(f"{path} is missing. {remedy}")
    if sha256_of(path) != sha256:
        raise ConfigurationError(f"{path} has another SHA-256 than pinned. {remedy}")
    return path


def _grow_gpu_memory_as_needed() -> None:
    """Before first use; TensorFlow takes the whole GPU otherwise."""
    import tensorflow as tf

    for gpu in tf.config.list_physical_devices("GPU"):
        tf.config.experimental.set_memory_growth(gpu, True)
