"""The loop that a user of DeepFace writes first, for the benchmarks."""

import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from tasks.settings import Settings

FRAMES = 10


def deepface_loop() -> "Callable[[Path, Path], dict[str, Any]]":
    """Load DeepFace; a function of card and video that gives `similarity` and `seconds` by stage.

    It decodes the video with OpenCV, takes FRAMES evenly spaced frames, calls `DeepFace.verify(card, frame)` for each,
    with this project's models, and keeps the smallest distance.
    """
    from tasks.faces.models import engine_config
    from tasks.faces.native import load_models

    settings = Settings()
    load_models(engine_config(settings), settings.weights_dir)  # DeepFace's folder, and the checked weights
    import cv2
    from deepface import DeepFace
    from deepface.modules import modeling

    modeling.cached_models["facial_recognition"].clear()  # DeepFace's own session in place of the engine's faster one

    def compare(card: Path, video: Path) -> dict[str, Any]:
        begin = time.perf_counter()
        capture = cv2.VideoCapture(str(video))
        count = int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
        wanted = {int(count * (index + 0.5) / FRAMES) for index in range(FRAMES)}
        frames = []
        for index in range(count):
            capture.grab()
            if index in wanted:
                frames.append(capture.retrieve()[1])
        decoded = time.perf_counter() - begin
        distances = []
        for frame in frames:
            with suppress(ValueError):  # no face in this frame
                found = DeepFace.verify(str(card), frame, model_name="SFace", detector_backend="yunet")
                distances.append(found["distance"])
        return {"similarity": 1 - min(distances), "seconds": {"decode": decoded}}

    return compare
