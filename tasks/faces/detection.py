"""Detection: where faces are in a picture, with landmarks for alignment. Coarse first, then each face close up."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tasks.contracts import Box
from tasks.faces.native import LOCK, Models, device_errors

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

MIN_CONFIDENCE = 0.85
"""YuNet's score from which a box counts as a face. Measured on 277 pictures of Labeled Faces in the Wild: upright faces
score 0.86 to 0.94. DeepFace's default, 0.9, loses 7 of them."""

SURE_CONFIDENCE = 0.9
"""Below it a face may stand on its head: YuNet finds such faces too, at 0.80 to 0.91, with landmarks as if upright."""

VIDEO_SIDES = (320, 640)
CARD_SIDES = (320, 640, 1280, 2560)
"""Longest sides, in pixels, at which a whole picture is searched, one after the other until a face is found. YuNet
finds faces of 10 to 300 pixels: large ones are lost at large sizes. A selfie's face is large, a card's may be small."""

RIVAL_AREA = 0.5
"""A second face counts when its box has at least this share of the main one's area. An ID card's ghost portrait and
people in the background are smaller: at half the height a face has a quarter of the area."""

PATCH_SIDE = 192
PATCH_OF_FACE = 1.8
"""A face is cut out with its surroundings, 1.8 times its box, into at most 192 pixels: landmarks are found again on it
in 2 ms. Of the sizes tried on Labeled Faces in the Wild (160 to 320 pixels, 1.8 to 2.6 times) none does better."""

_MOST_ENLARGED = 2.0


PartOf = Callable[[int, int, int, int], "NDArray[np.uint8]"]
"""(left, top, right, bottom) to that part of a picture, (height, width, 3) RGB."""


@dataclass(frozen=True)
class Face:
    """A face in a picture, in that picture's pixels.

    `points`: (5, 2) or (2, 2) in the order of `alignment.TEMPLATE`. `confidence`: 0 to 1.
    """

    box: Box
    points: "NDArray[np.float64]"
    confidence: float

    @property
    def area(self) -> float:
        """Of its box."""
        return self.box[2] * self.box[3]

    def moved(self, scale: float, left: float = 0.0, top: float = 0.0) -> "Face":
        """The same face in a picture of which this one shows a part: scaled, then shifted."""
        box = (self.box[0] * scale + left, self.box[1] * scale + top, self.box[2] * scale, self.box[3] * scale)
        return Face(box, self.points * scale + (left, top), self.confidence)


@dataclass(frozen=True)
class Patch:
    """A face cut out of a picture. `pixels`: (side, side, 3) RGB, side at most PATCH_SIDE. `face`: in these pixels.

    `scale`, `left`, `top`: where it was, as `Face.moved` takes them.
    """

    pixels: "NDArray[np.uint8]"
    face: Face
    scale: float
    left: float
    top: float

    @property
    def in_picture(self) -> Face:
        """The face in the picture's own pixels."""
        return self.face.moved(self.scale, self.left, self.top)


def find_faces(models: Models, image: "NDArray[np.uint8]") -> list[Face]:
    """Faces in a (height, width, 3) RGB picture, largest first.

    Faces without landmarks are left out: they cannot be aligned. Raises ComputeUnavailable.
    """
    with device_errors():
        faces = _yunet(models.yunet(), image) if models.yunet else _other(models.detector, image)
    return sorted(faces, key=lambda face: (-face.area, face.box))


def cut_out(models: Models, size: tuple[int, int], part_of: PartOf, face: Face) -> Patch:
    """A face that was found in a picture of `size` (width, height), close up, with landmarks found anew.

    `part_of`: gives a part of the picture in its own pixels. Raises ComputeUnavailable.
    """
    import cv2
    import numpy as np

    half = PATCH_OF_FACE * max(face.box[2:]) / 2
    middle = (face.box[0] + face.box[2] / 2, face.box[1] + face.box[3] / 2)
    left, top = (max(0, math.floor(at - half)) for at in middle)
    right, bottom = (min(side, math.ceil(at + half)) for at, side in zip(middle, size, strict=True))
    part = part_of(left, top, right, bottom)
    wanted = min(PATCH_SIDE / max(part.shape[:2]), _MOST_ENLARGED)
    patch_size = (max(1, round(part.shape[1] * wanted)), max(1, round(part.shape[0] * wanted)))
    pixels = cv2.resize(part, patch_size, interpolation=cv2.INTER_AREA if wanted < 1 else cv2.INTER_LINEAR)
    scale = 1 / wanted
    coarse = Face(
        ((face.box[0] - left) * wanted, (face.box[1] - top) * wanted, face.box[2] * wanted, face.box[3] * wanted),
        (face.points - (left, top)) * wanted,
        face.confidence,
    )
    close = [found for found in find_faces(models, pixels) if overlap(found.box, coarse.box) > 0.5]
    best = max(close, key=lambda found: overlap(found.box, coarse.box), default=coarse)
    return Patch(np.asarray(pixels), best, scale, left, top)


def rivals(face: Face, faces: list[Face]) -> list[Face]:
    """Those of the other faces in the same picture that are of like size, or larger."""
    return [other for other in faces if other is not face and other.area >= RIVAL_AREA * face.area]


def overlap(one: Box, other: Box) -> float:
    """Intersection over union of two boxes, 0 to 1."""
    width = min(one[0] + one[2], other[0] + other[2]) - max(one[0], other[0])
    height = min(one[1] + one[3], other[1] + other[3]) - max(one[1], other[1])
    if width <= 0 or height <= 0:
        return 0.0
    shared = width * height
    return shared / (one[2] * one[3] + other[2] * other[3] - shared)


def shrunk(image: "NDArray[np.uint8]", side: int) -> "tuple[NDArray[np.uint8], float]":
    """The picture with its longest side at most `side`, and how many of its own pixels one of these is."""
    import cv2
    import numpy as np

    scale = max(image.shape[:2]) / side
    if scale <= 1:
        return image, 1.0
    size = (max(1, round(image.shape[1] / scale)), max(1, round(image.shape[0] / scale)))
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA)), scale


def _yunet(model: Any, image: "NDArray[np.uint8]") -> list[Face]:
    """cv2.FaceDetectorYN's rows: x, y, width, height, five points (x, y), score. DeepFace drops three of the points."""
    import cv2
    import numpy as np

    model.setInputSize((image.shape[1], image.shape[0]))
    model.setScoreThreshold(MIN_CONFIDENCE)
    _, rows = model.detect(cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    return [
        Face(
            (float(row[0]), float(row[1]), float(row[2]), float(row[3])),
            np.asarray(row[4:14], dtype=np.float64).reshape(5, 2),
            min(1.0, float(row[14])),
        )
        for row in (() if rows is None else rows)
        if np.isfinite(row).all() and min(row[2], row[3]) > 0
    ]


def _other(detector: Any, image: "NDArray[np.uint8]") -> list[Face]:
    """DeepFace's regions, in which left and right are the person's own."""
    import numpy as np

    faces = []
    with LOCK:
        regions = detector.detect_faces(np.ascontiguousarray(image[..., ::-1]))
    for region in regions:
        if region.left_eye is None or region.right_eye is None or min(region.w, region.h) < 1:
            continue
        # Detectors disagree about whose left is meant, so the eyes are sorted as the picture shows them.
        points = sorted([region.right_eye, region.left_eye])
        if region.nose and region.mouth_right and region.mouth_left:
            points += [region.nose, *sorted([region.mouth_right, region.mouth_left])]
        if math.dist(points[0], points[1]) < 1:
            continue
        confidence = 1.0 if region.confidence is None else min(1.0, float(region.confidence))
        box = (float(region.x), float(region.y), float(region.w), float(region.h))
        faces.append(Face(box, np.array(points, dtype=np.float64), confidence))
    return faces
