"""The baseline: what `DeepFace.verify` makes of the same pictures with the same models, by its own rules.

It takes every face that its detector is sure of, aligns by the eyes, and lets the two most similar faces of a pair of
pictures decide (DeepFace 0.0.103, deepface/modules/verification.py). Embedding each picture once gives the same scores
as calling it for each pair.
"""

import hashlib
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tasks.contracts import EngineConfig
from tasks.evaluation.gallery import Pipeline
from tasks.evaluation.results import Wanted
from tasks.evaluation.templates import Template
from tasks.faces.native import LOCK, device_errors

NAME = "DeepFace.verify"
NO_FACE, UNREADABLE = "NO_FACE_FOUND", "NOT_READ"


def verify_pipeline(config: EngineConfig) -> Pipeline:
    """`DeepFace.verify`'s templates, with the engine's models. `make` raises ComputeUnavailable.

    Needs a loaded engine: that tells DeepFace where its weights lie.
    """
    fingerprint = hashlib.sha256(f"{NAME} {version('deepface')} {config.fingerprint()}".encode()).hexdigest()
    return Pipeline(NAME, fingerprint, lambda path: _represented(path, config))


def own_threshold(config: EngineConfig) -> Wanted:
    """The score from which `DeepFace.verify` says `verified` when it is not told another."""
    from deepface.modules.verification import find_threshold

    return Wanted(f"{NAME}'s own threshold", threshold=1 - float(find_threshold(config.recogniser, "cosine")))


def _represented(path: Path, config: EngineConfig) -> Template:
    """All faces that DeepFace finds in a picture; none is a failure, as `verify` raises then."""
    import cv2
    import numpy as np
    from deepface import DeepFace
    from deepface.modules.exceptions import FaceNotDetected

    faces: list[dict[str, Any]]
    try:
        with LOCK, device_errors():
            faces = DeepFace.represent(
                str(path.absolute()),
                model_name=config.recogniser,
                detector_backend=config.detector,
                align=True,
                enforce_detection=True,
            )
    except FaceNotDetected:
        return Template(np.empty((0, 0)), NO_FACE)
    except (ValueError, cv2.error):  # DeepFace's ImgNotFound is a ValueError
        return Template(np.empty((0, 0)), UNREADABLE)
    embeddings = np.asarray([face["embedding"] for face in faces], dtype=np.float64)
    return Template(embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True))
