"""`kycflow compare`, as a process: the engine alone, on two files."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from deployments.demo_media import DemoMedia
from tasks.downloads import sha256_of
from tasks.faces.models import ANTI_SPOOFING
from tasks.settings import Settings
from tests.pictures import drawn_thresholds


def kycflow(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "deployments.cli", *(str(argument) for argument in arguments)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.fixture
def state(media_settings: Settings, weights: list[Path]) -> dict[str, str]:
    assert weights
    return {"KYCFLOW_STATE_DIR": str(media_settings.state_dir)}


def test_a_match_and_its_report(demo_media: DemoMedia, state: dict[str, str], tmp_path: Path) -> None:
    report = tmp_path / "report.jpg"
    done = kycflow("compare", demo_media.genuine_card, demo_media.selfie_video, "--report", report, **state)
    assert done.returncode == 0, done.stderr
    for piece in ("match", "SIMILARITY_SUFFICIENT", "match from 0.416", "anti-spoofing  off", "ID image", "Sharp"):
        assert piece in done.stdout
    with Image.open(report) as picture:
        assert (picture.format, picture.width) == ("JPEG", 1200)


def test_json_for_programs(demo_media: DemoMedia, state: dict[str, str]) -> None:
    done = kycflow("compare", demo_media.impostor_card, demo_media.selfie_video, "--json", **state)
    assert done.returncode == 1, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    assert (answer["decision"], answer["reason"]) == ("no_match", "SIMILARITY_INSUFFICIENT")
    assert answer["comparison"]["device"] == "cpu"
    assert len(answer["comparison"]["frames"]) == 3


def test_a_bound_of_the_operator_decides_without_another_comparison(
    demo_media: DemoMedia, state: dict[str, str]
) -> None:
    state["KYCFLOW_MIN_ID_EYE_DISTANCE"] = "500"
    done = kycflow("compare", demo_media.genuine_card, demo_media.selfie_video, "--json", **state)
    answer = json.loads(done.stdout)
    assert (done.returncode, answer["reason"]) == (1, "ID_IMAGE_FACE_TOO_SMALL")
    assert answer["detail"].endswith("and 500 is needed.")
    assert answer["comparison"]["similarity"] > 0.416


def test_the_report_shows_the_operators_thresholds(
    demo_media: DemoMedia, state: dict[str, str], tmp_path: Path
) -> None:
    state["KYCFLOW_MATCH_THRESHOLD"] = "0.9"
    report = tmp_path / "report.jpg"
    done = kycflow("compare", demo_media.genuine_card, demo_media.selfie_video, "--report", report, **state)
    assert done.returncode == 1, done.stderr
    assert drawn_thresholds(report.read_bytes()) == pytest.approx((0.358, 0.9), abs=0.002)


def test_models_without_thresholds_give_a_score_and_no_decision(demo_media: DemoMedia, state: dict[str, str]) -> None:
    state |= {"KYCFLOW_DETECTOR": "mtcnn", "KYCFLOW_FRAMES": "2"}
    done = kycflow("compare", demo_media.genuine_card, demo_media.selfie_video, "--json", **state)
    assert done.returncode == 3, done.stderr
    answer = json.loads(done.stdout)
    assert answer["decision"] is None
    assert answer["comparison"]["similarity"] > 0.3
    assert "KYCFLOW_MATCH_THRESHOLD" in done.stderr


def test_a_gpu_that_is_asked_for_and_not_there_is_an_error(demo_media: DemoMedia, state: dict[str, str]) -> None:
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("This machine has a GPU.")
    done = kycflow("compare", demo_media.genuine_card, demo_media.selfie_video, KYCFLOW_DEVICE="cuda", **state)
    assert done.returncode == 2
    assert "KYCFLOW_DEVICE is cuda, and onnx sees no GPU here" in done.stderr


def write_anti_spoofing(path: Path, real: float) -> None:
    """A network of the right shape, (1, 80, 80, 3) to three probabilities, that always gives the same answer."""
    answer = numpy_helper.from_array(np.array([[(1 - real) / 2, real, (1 - real) / 2]], np.float32), "answer")
    axes = numpy_helper.from_array(np.array([1, 2], np.int64), "axes")
    nothing = numpy_helper.from_array(np.zeros(1, np.float32), "nothing")
    graph = helper.make_graph(
        [
            helper.make_node("ReduceMean", ["picture", "axes"], ["mean"], keepdims=0),
            helper.make_node("Mul", ["mean", "nothing"], ["silence"]),
            helper.make_node("Add", ["silence", "answer"], ["probabilities"]),
        ],
        "anti-spoofing",
        [helper.make_tensor_value_info("picture", TensorProto.FLOAT, [None, 80, 80, 3])],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, [None, 3])],
        [answer, axes, nothing],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)


@pytest.mark.parametrize(("real", "decision"), [(0.9, "match"), (0.1, "rejected")])
def test_anti_spoofing_runs_where_its_weights_are_at_hand(
    demo_media: DemoMedia, weights: list[Path], tmp_path: Path, real: float, decision: str
) -> None:
    """DeepFace's own weights cannot be fetched here: these have their shape, and an answer that is known."""
    brought = tmp_path / "brought"
    brought.mkdir()
    for path in weights:
        (brought / path.name).symlink_to(path)
    for name in ANTI_SPOOFING:
        write_anti_spoofing(brought / name, real)
    environment = {
        "KYCFLOW_STATE_DIR": str(tmp_path / "state"),
        "KYCFLOW_MODELS_FOLDER": str(brought),
        "KYCFLOW_WEIGHTS_SHA256": json.dumps({name: sha256_of(brought / name) for name in ANTI_SPOOFING}),
    }
    assert kycflow("models", "pull", **environment).returncode == 0
    done = kycflow("compare", demo_media.genuine_card, demo_media.selfie_video, "--json", **environment)
    answer = json.loads(done.stdout)
    assert answer["decision"] == decision
    assert answer["comparison"]["anti_spoofing"] == (1.0 if real > 0.5 else 0.0)
    if decision == "rejected":
        assert answer["reason"] == "PRESENTATION_ATTACK_SUSPECTED"
