"""Which way up: faces are found in a picture that lies or leans, and it is turned so that they stand upright."""

import math
from typing import TYPE_CHECKING

from tasks.faces.detection import SURE_CONFIDENCE, VIDEO_SIDES, Face, find_faces, shrunk
from tasks.faces.native import Models

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

WAYS = (0, 90, 180, 270, 45, 135, 225, 315)
"""Degrees by which a picture is turned, counter-clockwise, one way after the other. YuNet finds faces that are tilted
by up to some 30 degrees."""


def find_any_way(models: Models, image: "NDArray[np.uint8]") -> list[Face]:
    """Faces in a (height, width, 3) RGB picture, largest first, found the way up that shows the surest largest one.

    Other ways up are tried when upright shows none sure. Raises ComputeUnavailable.
    """
    best: list[Face] = []
    for way in WAYS:
        faces = find_faces(models, image) if way == 0 else _find_turned(models, image, way)
        if faces and (not best or faces[0].confidence > best[0].confidence):
            best = faces
        if way == 0 and best and best[0].confidence >= SURE_CONFIDENCE:
            break
    return best


class Standing:
    """Which way up people stand in a video's frames: looked for until a face is sure, then kept."""

    def __init__(self, models: Models) -> None:
        self._models = models
        self._turns = 0
        self._sure = False

    def look(self, pixels: "NDArray[np.uint8]") -> "tuple[NDArray[np.uint8], NDArray[np.uint8], list[Face]]":
        """A frame as it stands, its small copy that was searched, and the faces in the frame, largest first.

        `pixels`: (height, width, 3) RGB. Raises ComputeUnavailable.
        """
        import numpy as np

        pixels = np.ascontiguousarray(np.rot90(pixels, self._turns))
        small, faces = self._searched(pixels)
        if not self._sure and not (faces and faces[0].confidence >= SURE_CONFIDENCE):
            copy, scale = shrunk(pixels, VIDEO_SIDES[0])
            others = [face.moved(scale) for face in find_any_way(self._models, copy)]
            if others and (not faces or others[0].confidence > faces[0].confidence):
                turns = quarters(others[0])
                self._turns += turns
                faces = [turned(face, turns, pixels.shape[1::-1]) for face in others]
                pixels, small = (np.ascontiguousarray(np.rot90(each, turns)) for each in (pixels, small))
        self._sure = self._sure or bool(faces and faces[0].confidence >= SURE_CONFIDENCE)
        return pixels, small, faces

    def _searched(self, pixels: "NDArray[np.uint8]") -> "tuple[NDArray[np.uint8], list[Face]]":
        small = pixels
        for side in VIDEO_SIDES:
            small, scale = shrunk(pixels, side)
            faces = find_faces(self._models, small)
            if faces or scale == 1:
                return small, [face.moved(scale) for face in faces]
        return small, []


def quarters(face: Face) -> int:
    """By how many quarters a picture is to be turned for a face to stand upright: counter-clockwise, 0 to 3."""
    return round(face.roll / 90) % 4


def turned(face: Face, turns: int, size: tuple[int, int]) -> Face:
    """The same face in a picture of that (width, height) that was turned by so many quarters counter-clockwise."""
    width, height = size
    for _ in range(turns):
        left, top, wide, high = face.box
        x, y = face.points[:, 0], face.points[:, 1]
        points = face.points.copy()
        points[:, 0], points[:, 1] = y, width - x
        face = Face((top, width - left - wide, high, wide), points, face.confidence)
        width, height = height, width
    return face


def _find_turned(models: Models, image: "NDArray[np.uint8]", degrees: int) -> list[Face]:
    import cv2
    import numpy as np

    height, width = image.shape[:2]
    if degrees % 90 == 0:
        turns = degrees // 90
        size = (width, height) if turns % 2 == 0 else (height, width)
        faces = find_faces(models, np.ascontiguousarray(np.rot90(image, turns)))
        return [turned(face, 4 - turns, size) for face in faces]
    side = math.ceil((width + height) / math.sqrt(2))
    there = cv2.getRotationMatrix2D((width / 2, height / 2), degrees, 1)
    there[:, 2] += ((side - width) / 2, (side - height) / 2)
    back = cv2.invertAffineTransform(there)
    pixels = np.asarray(cv2.warpAffine(image, there, (side, side), borderMode=cv2.BORDER_REPLICATE))
    return [face.mapped(back) for face in find_faces(models, pixels)]
