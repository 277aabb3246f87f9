"""The registry: sums, thresholds, and what is said when something is not known."""

import subprocess
import sys
from pathlib import Path

import pytest

from tasks.contracts import Thresholds
from tasks.downloads import PinnedFile
from tasks.errors import ConfigurationError
from tasks.faces import models
from tasks.settings import Settings

SUM = "0" * 64


def test_default_engine_is_pinned() -> None:
    config = models.engine_config(Settings())
    assert set(config.weights_sha256) == {
        "face_detection_yunet_2023mar.onnx",
        "face_recognition_sface_2021dec.onnx",
    }
    assert config == models.engine_config(Settings())


SPOOFING = dict.fromkeys(models.ANTI_SPOOFING, SUM)


@pytest.mark.parametrize(
    "change",
    [{"frames": 11}, {"frames_used": 4}, {"detector": "mtcnn"}, {"weights_sha256": SPOOFING}],
    ids=lambda change: next(iter(change)),
)
def test_what_changes_a_score_changes_the_fingerprint(change: dict[str, object]) -> None:
    changed = models.engine_config(Settings.model_validate(change))
    assert changed.fingerprint() != models.engine_config(Settings()).fingerprint()


@pytest.mark.parametrize(
    "change",
    [
        {"backend": "tensorflow"},  # SFace has one form only
        {"device": "cpu"},
        {"match_threshold": 0.5},
        {"min_sharpness": 0.2},
        {"weights_sha256": {"arcface_weights.onnx": SUM}},  # of a model that is not in use
    ],
    ids=lambda change: next(iter(change)),
)
def test_what_changes_no_score_keeps_the_fingerprint(change: dict[str, object]) -> None:
    changed = models.engine_config(Settings.model_validate(change))
    assert changed.fingerprint() == models.engine_config(Settings()).fingerprint()


def test_weights_that_a_package_carries_are_part_of_the_fingerprint() -> None:
    sums = models.engine_config(Settings(detector="mtcnn")).weights_sha256
    assert {name for name in sums if name.startswith("mtcnn/")} == {
        "mtcnn/pnet.lz4",
        "mtcnn/rnet.lz4",
        "mtcnn/onet.lz4",
    }


def test_anti_spoofing_runs_where_its_weights_have_a_sum() -> None:
    assert not models.engine_config(Settings()).anti_spoofing
    assert models.engine_config(Settings(weights_sha256=SPOOFING)).anti_spoofing
    assert not models.engine_config(Settings(weights_sha256=SPOOFING, anti_spoofing="off")).anti_spoofing
    with pytest.raises(ConfigurationError, match="KYCFLOW_ANTI_SPOOFING is on"):
        models.engine_config(Settings(anti_spoofing="on"))


def test_unpinned_weights_need_the_operators_sum() -> None:
    with pytest.raises(ConfigurationError, match=r"arcface_weights\.onnx.*KYCFLOW_WEIGHTS_SHA256"):
        models.engine_config(Settings(recogniser="ArcFace"))
    config = models.engine_config(Settings(recogniser="ArcFace", weights_sha256={"arcface_weights.onnx": SUM}))
    assert config.weights_sha256["arcface_weights.onnx"] == SUM


def test_backends_have_their_own_files() -> None:
    settings = Settings(
        recogniser="DeepID", detector="mtcnn", backend="tensorflow", weights_sha256={"deepid_keras_weights.h5": SUM}
    )
    sums = models.engine_config(settings).weights_sha256
    assert sums["deepid_keras_weights.h5"] == SUM


def test_a_pin_cannot_be_overruled() -> None:
    with pytest.raises(ConfigurationError, match="another sum"):
        models.engine_config(Settings(weights_sha256={"face_detection_yunet_2023mar.onnx": SUM}))


@pytest.mark.parametrize("change", [{"recogniser": "Nobody"}, {"detector": "Nobody"}], ids=["recogniser", "detector"])
def test_unknown_models_are_named_with_the_known_ones(change: dict[str, object]) -> None:
    with pytest.raises(ConfigurationError, match=r"'Nobody'.*(SFace|yunet)"):
        models.engine_config(Settings.model_validate(change))


def test_thresholds_only_for_what_was_measured() -> None:
    found = models.measured("SFace", "yunet")
    assert found is not None
    assert found.thresholds == Thresholds(match=0.416, review=0.358)
    assert models.measured("SFace", "mtcnn") is None


def test_verify_names_what_is_missing_and_what_is_wrong(tmp_path: Path) -> None:
    settings = Settings(state_dir=tmp_path)
    settings.weights_dir.mkdir(parents=True)
    (settings.weights_dir / "face_detection_yunet_2023mar.onnx").write_bytes(b"something else")
    assert [(file.name, state) for file, state in models.verify(settings)] == [
        ("face_detection_yunet_2023mar.onnx", "wrong"),
        ("face_recognition_sface_2021dec.onnx", "missing"),
    ]
    assert all(isinstance(file, PinnedFile) for file, _ in models.verify(settings))


def test_core_modules_need_no_heavy_library() -> None:
    """Session workers and the upload service are installed without the extra `faces`."""
    code = """
import sys
import deployments.demo_media, tasks.faces.engine, tasks.faces.models, tasks.faces.picture, tasks.media
sys.exit(", ".join({"numpy", "cv2", "deepface", "tensorflow", "onnxruntime"} & set(sys.modules)) or 0)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
