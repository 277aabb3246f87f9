"""TensorFlow models, each in a fresh process: a process's DeepFace stays with one backend.

DeepFace's TensorFlow recognisers have no weights that can be fetched from a package index, so the loading code is
tested on weights that the model's own architecture makes here. Their accuracy cannot be tested this way.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from deployments.demo_media import DemoMedia
from tasks.downloads import sha256_of
from tasks.settings import Settings

COMPARE = """
import json, sys
from pathlib import Path
from tasks.settings import Settings
from tasks.faces.engine import load_engine
from tasks.faces.models import engine_config
settings = Settings()
engine = load_engine(engine_config(settings), settings)
comparison = engine.compare(Path(sys.argv[1]), Path(sys.argv[2]), settings).comparison
again = engine.compare(Path(sys.argv[1]), Path(sys.argv[2]), settings).comparison
print(json.dumps({
    "comparison": comparison.model_dump(mode="json"),
    "again": again.similarity,
    "tensorflow": "tensorflow" in sys.modules,
}))
"""

# DeepFace asks this function for the weights in the middle of building a model. The model's own, random, are saved
# where it then loads them from.
MAKE_WEIGHTS = """
import sys
from pathlib import Path
from deepface.commons import weight_utils
target = Path(sys.argv[1])
weight_utils.download_weights_if_necessary = lambda file_name, source_url, compress_type=None: str(target / file_name)
def save(model, weight_file):
    model.save_weights(weight_file)
    return model
weight_utils.load_model_weights = save
from deepface import DeepFace
import tensorflow
tensorflow.keras.utils.set_random_seed(5)
DeepFace.build_model(task="facial_recognition", model_name=sys.argv[2])
"""


def run(code: str, *arguments: object, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code, *(str(argument) for argument in arguments)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_detector_mtcnn_on_its_real_weights(
    weights: list[Path], demo_media: DemoMedia, media_settings: Settings
) -> None:
    environment = {
        "KYCFLOW_STATE_DIR": str(media_settings.state_dir),
        "KYCFLOW_DETECTOR": "mtcnn",
        "KYCFLOW_FRAMES": "3",
    }
    output = run(COMPARE, demo_media.genuine_card, demo_media.selfie_video, **environment)
    answer: dict[str, Any] = json.loads(output.splitlines()[-1])
    assert answer["tensorflow"]
    assert answer["comparison"]["rejection"] is None
    assert answer["comparison"]["similarity"] > 0.3  # aligned by two eyes only: a smaller margin than five points
    assert answer["comparison"]["similarity"] == pytest.approx(answer["again"], abs=1e-5)
    assert all(frame["quality"]["confidence"] > 0.9 for frame in answer["comparison"]["frames"])


@pytest.mark.parametrize(
    ("name", "file_name"), [("DeepID", "deepid_keras_weights.h5"), ("OpenFace", "openface_weights.h5")]
)
def test_recogniser_loads_pinned_weights(
    weights: list[Path], demo_media: DemoMedia, tmp_path: Path, name: str, file_name: str
) -> None:
    brought = tmp_path / "brought"
    brought.mkdir()
    run(MAKE_WEIGHTS, brought, name, DEEPFACE_BACKEND_ENGINE="tensorflow", DEEPFACE_HOME=str(tmp_path / "unused"))
    environment = {
        "KYCFLOW_STATE_DIR": str(tmp_path / "state"),
        "KYCFLOW_MODELS_FOLDER": str(brought),
        "KYCFLOW_RECOGNISER": name,
        "KYCFLOW_BACKEND": "tensorflow",
        "KYCFLOW_FRAMES": "3",
        "KYCFLOW_WEIGHTS_SHA256": json.dumps({file_name: sha256_of(brought / file_name)}),
    }
    for path in weights:
        (brought / path.name).symlink_to(path)
    run("from tasks.faces.models import pull; from tasks.settings import Settings; pull(Settings())", **environment)
    output = run(COMPARE, demo_media.genuine_card, demo_media.selfie_video, **environment)
    answer: dict[str, Any] = json.loads(output.splitlines()[-1])
    assert answer["tensorflow"]
    assert -1 <= answer["comparison"]["similarity"] <= 1.0001
    assert answer["comparison"]["similarity"] == pytest.approx(answer["again"], abs=1e-5)
    assert len(answer["comparison"]["frames"]) == 3
