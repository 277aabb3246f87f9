"""Detection: where faces are in a picture, with landmarks for alignment. Coarse first, then each face close up."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
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

UPRIGHT_DEGREES = 12.0
"""A tilt that is told to be no more than this is left: at 12 degrees the similarity to the same person falls by 0.03,
and the telling is as far off."""

_SHOWN_OF_TILT = 0.11
"""What YuNet's landmarks show of a tilt: it places them nearly as if the face stood upright, and the recogniser pays
for it. Measured on 25 people of Labeled Faces in the Wild, turned by up to 32 degrees, with a standard deviation of 1
degree of what is shown; the similarity to another picture of the same person falls from 0.66 to 0.60 at 20 degrees, and
to 0.30 at 32. Its confidence is highest upright: 0.920, and 0.907 at 16 degrees."""

_MOST_ENLARGED = 2.0
_MOST_TURNS = 3
_SAME = 0.5
"""Intersection over union from which a face found close up is the one that was looked for."""


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

    @property
    def roll(self) -> float:
        """Degrees tilted, -180 to 180: positive clockwise in the picture."""
        across = self.points[1] - self.points[0]
        return math.degrees(math.atan2(across[1], across[0]))

    def mapped(self, matrix: "NDArray[np.float64]") -> "Face":
        """The same face where a (2, 3) similarity puts it; its box keeps its shape, around its middle."""
        scale = math.hypot(matrix[0, 0], matrix[1, 0])
        left, top, width, height = self.box
        x, y = matrix[:, :2] @ (left + width / 2, top + height / 2) + matrix[:, 2]
        box = (float(x) - width * scale / 2, float(y) - height * scale / 2, width * scale, height * scale)
        return Face(box, self.points @ matrix[:, :2].T + matrix[:, 2], self.confidence)

    def moved(self, scale: float, left: float = 0.0, top: float = 0.0) -> "Face":
        """The same face in a picture of which this one shows a part: scaled, then shifted."""
        box = (self.box[0] * scale + left, self.box[1] * scale + top, self.box[2] * scale, self.box[3] * scale)
        return Face(box, self.points * scale + (left, top), self.confidence)


@dataclass(frozen=True)
class Patch:
    """A face cut out of a picture, about upright. `pixels`: (height, width, 3) RGB, sides at most PATCH_SIDE.

    `face`: in these pixels. `matrix`: the (2, 3) similarity from these pixels to the picture's own.
    """

    pixels: "NDArray[np.uint8]"
    face: Face
    matrix: "NDArray[np.float64]"

    @property
    def scale(self) -> float:
        """The picture's own pixels for one of these."""
        return math.hypot(self.matrix[0, 0], self.matrix[1, 0])

    @property
    def in_picture(self) -> Face:
        """The face in the picture's own pixels."""
        return self.face.mapped(self.matrix)


def find_faces(models: Models, image: "NDArray[np.uint8]") -> list[Face]:
    """Faces in a (height, width, 3) RGB picture, largest first.

    Faces without landmarks are left out: they cannot be aligned. Raises ComputeUnavailable.
    """
    with device_errors():
        faces = _yunet(models.yunet(), image) if models.yunet else _other(models.detector, image)
    return sorted(faces, key=lambda face: (-face.area, face.box))


def cut_out(models: Models, size: tuple[int, int], part_of: PartOf, face: Face) -> Patch:
    """A face that was found in a picture of `size` (width, height), close up and upright, with landmarks found anew.

    It is turned by the tilt that its landmarks tell, as long as the detector is surer of it then. `part_of`: gives a
    part of the picture in its own pixels. Raises ComputeUnavailable.
    """
    way = 45 * round(face.roll / 45)  # as `upright.WAYS`: what is left is what the landmarks show of a tilt
    shown_of = _SHOWN_OF_TILT if models.yunet else 1.0
    best: Patch | None = None
    tilt = float(way)
    for _ in range(_MOST_TURNS):
        found = _close_up(models, size, part_of, face, tilt)
        if found is None or (best is not None and found.face.confidence <= best.face.confidence):
            break
        best = found
        rest = _bounded(found.face.roll / shown_of)
        if rest == 0:
            break
        tilt += rest
    return best or _coarse(size, part_of, face)


def _bounded(tilt: float) -> float:
    """A tilt that was told from landmarks: 0 when it is small, and no more than a face can be found with."""
    return 0.0 if abs(tilt) <= UPRIGHT_DEGREES else max(-30.0, min(30.0, tilt))


def _close_up(models: Models, size: tuple[int, int], part_of: PartOf, face: Face, tilt: float) -> Patch | None:
    """The face turned counter-clockwise by `tilt` degrees, with new landmarks; None when it is not found so."""
    patch = _coarse(size, part_of, face) if tilt == 0 else _turned(size, part_of, face, tilt)
    close = [found for found in find_faces(models, patch.pixels) if overlap(found.box, patch.face.box) > _SAME]
    best = max(close, key=lambda found: overlap(found.box, patch.face.box), default=None)
    return None if best is None else replace(patch, face=best)


def _coarse(size: tuple[int, int], part_of: PartOf, face: Face) -> Patch:
    """The face as it stands, with the landmarks that it has."""
    import cv2
    import numpy as np

    left, top, right, bottom = _around(face, size, PATCH_OF_FACE / 2)
    part = part_of(left, top, right, bottom)
    wanted = min(PATCH_SIDE / max(part.shape[:2]), _MOST_ENLARGED)
    patch_size = (max(1, round(part.shape[1] * wanted)), max(1, round(part.shape[0] * wanted)))
    pixels = cv2.resize(part, patch_size, interpolation=cv2.INTER_AREA if wanted < 1 else cv2.INTER_LINEAR)
    there = np.array([[wanted, 0, -left * wanted], [0, wanted, -top * wanted]])
    return Patch(np.asarray(pixels), face.mapped(there), cv2.invertAffineTransform(there))


def _turned(size: tuple[int, int], part_of: PartOf, face: Face, tilt: float) -> Patch:
    """The face turned counter-clockwise by `tilt` degrees around its middle, which becomes the patch's."""
    import cv2
    import numpy as np

    side = PATCH_OF_FACE * max(face.box[2:])
    wanted = min(PATCH_SIDE / side, _MOST_ENLARGED)
    left, top, right, bottom = _around(face, size, PATCH_OF_FACE / math.sqrt(2))
    part = part_of(left, top, right, bottom)
    if wanted < 1:  # first, as a turn by itself would only look at some of the pixels
        part = cv2.resize(part, None, fx=wanted, fy=wanted, interpolation=cv2.INTER_AREA)
    rest = max(1.0, wanted)
    middle = (face.box[0] + face.box[2] / 2, face.box[1] + face.box[3] / 2)
    half = round(side * wanted) / 2
    there = cv2.getRotationMatrix2D((0, 0), tilt, wanted)
    there[:, 2] = half - there[:, :2] @ middle
    shift = np.array([[1, 0, left], [0, 1, top], [0, 0, 1]]) @ np.diag([rest / wanted, rest / wanted, 1])
    border = cv2.BORDER_REPLICATE
    pixels = cv2.warpAffine(part, there @ shift, (round(2 * half), round(2 * half)), borderMode=border)
    return Patch(np.asarray(pixels), face.mapped(there), cv2.invertAffineTransform(there))


def _around(face: Face, size: tuple[int, int], reach: float) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of what lies within `reach` times the face's longer side of its middle."""
    half = reach * max(face.box[2:])
    middle = (face.box[0] + face.box[2] / 2, face.box[1] + face.box[3] / 2)
    left, top = (max(0, math.floor(at - half)) for at in middle)
    right, bottom = (min(side, math.ceil(at + half)) for at, side in zip(middle, size, strict=True))
    return left, top, right, bottom


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
