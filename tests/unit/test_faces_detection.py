"""Which faces count, and what is made of DeepFace's regions."""

from dataclasses import dataclass

import numpy as np
import pytest

from tasks.errors import ComputeUnavailable
from tasks.faces.detection import Face, detect, has_rival
from tasks.faces.native import device_errors


@dataclass
class Region:
    """As deepface.models.Detector.FacialAreaRegion."""

    x: int
    y: int
    w: int
    h: int
    left_eye: tuple[int, int] | None = None
    right_eye: tuple[int, int] | None = None
    confidence: float | None = None
    nose: tuple[int, int] | None = None
    mouth_right: tuple[int, int] | None = None
    mouth_left: tuple[int, int] | None = None


@dataclass
class Detector:
    regions: list[Region]

    def detect_faces(self, image: object) -> list[Region]:
        return self.regions


def face(area: float) -> Face:
    return Face(np.zeros((5, 2)), 0.9, area)


@pytest.mark.parametrize(
    ("areas", "expected"),
    [([], False), ([100.0], False), ([100.0, 49.0], False), ([100.0, 50.0], True), ([100.0, 25.0, 24.0], False)],
)
def test_small_faces_are_no_rivals(areas: list[float], expected: bool) -> None:
    assert has_rival([face(area) for area in areas]) is expected


def test_regions_come_back_in_the_pictures_own_pixels_largest_first() -> None:
    regions = [
        Region(0, 0, 10, 10, left_eye=(8, 4), right_eye=(2, 4)),
        Region(100, 100, 50, 60, left_eye=(110, 120), right_eye=(140, 120), confidence=0.7),  # left and right confused
        Region(0, 0, 90, 90),  # without eyes: cannot be aligned
    ]
    faces = detect(Detector(regions), "mtcnn", np.zeros((640, 1280, 3), np.uint8))
    assert [found.area for found in faces] == [50 * 60 * 4, 10 * 10 * 4]
    assert faces[0].points.tolist() == [[220, 240], [280, 240]]
    assert [found.confidence for found in faces] == [0.7, 1.0]


def test_five_points_are_used_where_a_detector_gives_them() -> None:
    region = Region(0, 0, 50, 60, (40, 20), (10, 20), 0.9, nose=(25, 30), mouth_right=(12, 45), mouth_left=(38, 45))
    (found,) = detect(Detector([region]), "retinaface", np.zeros((100, 100, 3), np.uint8))
    assert found.points.tolist() == [[10, 20], [40, 20], [25, 30], [12, 45], [38, 45]]


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("CUDA failure 700: an illegal memory access"),
        ValueError("Failed to allocate memory"),
    ],
)
def test_device_trouble_is_retryable(error: Exception) -> None:
    with pytest.raises(ComputeUnavailable), device_errors():
        raise error


def test_bugs_stay_bugs() -> None:
    with pytest.raises(IndexError), device_errors():
        raise IndexError("list index out of range")
