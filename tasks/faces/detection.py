"""Detection: where faces are in a picture, with landmarks for alignment."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tasks.faces.native import LOCK, device_errors

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

LONGEST_SIDE = 640
"""Pictures are shrunk to this many pixels for detection: YuNet's default, and it misses faces on larger ones."""

MIN_CONFIDENCE = 0.85
"""YuNet's score from which a box counts as a face. Measured on 277 pictures of Labeled Faces in the Wild: upright faces
score 0.86 to 0.94. DeepFace's default, 0.9, loses 7 of them."""

SURE_CONFIDENCE = 0.9
"""Below it a face may stand on its head: YuNet finds such faces too, at 0.80 to 0.91, with landmarks as if upright."""

RIVAL_AREA = 0.5
"""A second face counts when its box has at least this share of the largest one's area. An ID card's ghost portrait and
people in the background are smaller: at half the height a face has a quarter of the area."""


@dataclass(frozen=True)
class Face:
    """A face in a picture, in that picture's pixels.

    `points`: (5, 2) or (2, 2) in the order of `alignment.TEMPLATE`. `confidence`: 0 to 1. `area`: of its box.
    """

    points: "NDArray[np.float64]"
    confidence: float
    area: float


def detect(detector: Any, name: str, image: "NDArray[np.uint8]") -> list[Face]:
    """Faces in a (height, width, 3) BGR picture, largest first. `detector` is DeepFace's object of that name.

    Faces without landmarks are left out: they cannot be aligned. Raises ComputeUnavailable.
    """
    import cv2

    height, width = image.shape[:2]
    shrink = min(1.0, LONGEST_SIDE / max(height, width))
    if shrink < 1:
        size = (max(1, round(width * shrink)), max(1, round(height * shrink)))
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    with LOCK, device_errors():
        faces = _yunet(detector.model, image) if name == "yunet" else _other(detector, image)
    faces = [Face(face.points / shrink, face.confidence, face.area / shrink**2) for face in faces]
    return sorted(faces, key=lambda face: (-face.area, face.points[0].tolist()))


def has_rival(faces: list[Face]) -> bool:
    """Whether the largest face is not alone: another one is of like size. `faces` are largest first."""
    return len(faces) > 1 and faces[1].area >= RIVAL_AREA * faces[0].area


def _yunet(model: Any, image: "NDArray[np.uint8]") -> list[Face]:
    """cv2.FaceDetectorYN's rows: x, y, width, height, five points (x, y), score. DeepFace drops three of the points."""
    import numpy as np

    model.setInputSize((image.shape[1], image.shape[0]))
    model.setScoreThreshold(MIN_CONFIDENCE)
    _, rows = model.detect(image)
    return [
        Face(np.asarray(row[4:14], dtype=np.float64).reshape(5, 2), min(1.0, float(row[14])), float(row[2] * row[3]))
        for row in (() if rows is None else rows)
        if np.isfinite(row).all()
    ]


def _other(detector: Any, image: "NDArray[np.uint8]") -> list[Face]:
    """DeepFace's regions, in which left and right are the person's own."""
    import numpy as np

    faces = []
    for region in detector.detect_faces(image):
        if region.left_eye is None or region.right_eye is None:
            continue
        # Detectors disagree about whose left is meant, so the eyes are sorted as the picture shows them.
        points = sorted([region.right_eye, region.left_eye])
        if region.nose and region.mouth_right and region.mouth_left:
            points += [region.nose, *sorted([region.mouth_right, region.mouth_left])]
        if math.dist(points[0], points[1]) < 1:
            continue
        confidence = 1.0 if region.confidence is None else min(1.0, float(region.confidence))
        faces.append(Face(np.array(points, dtype=np.float64), confidence, float(region.w * region.h)))
    return faces
