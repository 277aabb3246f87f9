"""Which faces count, who is followed, and what is made of DeepFace's regions."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tasks.errors import ComputeUnavailable
from tasks.faces.detection import Face, cut_out, find_faces, overlap, rivals
from tasks.faces.native import Models, device_errors
from tasks.faces.tracking import Follower


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


def models(*regions: Region) -> Models:
    def embed(crops: NDArray[Any]) -> NDArray[Any]:
        raise AssertionError("Nothing is embedded here.")

    return Models(Detector(list(regions)), None, embed, None, "cpu")


def black(left: int, top: int, right: int, bottom: int) -> NDArray[np.uint8]:
    return np.zeros((bottom - top, right - left, 3), np.uint8)


def face(left: float = 0, top: float = 0, side: float = 100) -> Face:
    return Face((left, top, side, side), np.zeros((5, 2)), 0.9)


@pytest.mark.parametrize(
    ("sides", "expected"),
    [([100], 0), ([100, 70], 0), ([100, 71], 1), ([100, 90, 80, 50], 2), ([60, 100], 1)],
)
def test_faces_of_half_the_area_are_rivals(sides: list[float], expected: int) -> None:
    faces = [face(side=side) for side in sides]
    assert len(rivals(faces[0], faces)) == expected


def test_overlap_is_intersection_over_union() -> None:
    assert overlap((0, 0, 10, 10), (0, 0, 10, 10)) == 1
    assert overlap((0, 0, 10, 10), (5, 0, 10, 10)) == pytest.approx(50 / 150)
    assert overlap((0, 0, 10, 10), (10, 0, 10, 10)) == 0


def test_regions_come_back_largest_first() -> None:
    found = models(
        Region(0, 0, 10, 10, left_eye=(8, 4), right_eye=(2, 4)),
        Region(100, 100, 50, 60, left_eye=(110, 120), right_eye=(140, 120), confidence=0.7),  # left and right confused
        Region(0, 0, 90, 90),  # without eyes: cannot be aligned
    )
    faces = find_faces(found, np.zeros((640, 1280, 3), np.uint8))
    assert [one.area for one in faces] == [50 * 60, 10 * 10]
    assert faces[0].box == (100, 100, 50, 60)
    assert faces[0].points.tolist() == [[110, 120], [140, 120]]
    assert [one.confidence for one in faces] == [0.7, 1.0]


def test_five_points_are_used_where_a_detector_gives_them() -> None:
    region = Region(0, 0, 50, 60, (40, 20), (10, 20), 0.9, nose=(25, 30), mouth_right=(12, 45), mouth_left=(38, 45))
    (found,) = find_faces(models(region), np.zeros((100, 100, 3), np.uint8))
    assert found.points.tolist() == [[10, 20], [40, 20], [25, 30], [12, 45], [38, 45]]


def test_a_face_that_is_lost_close_up_keeps_its_coarse_landmarks() -> None:
    points = np.array([[480.0, 500], [520, 500], [500, 520], [485, 540], [515, 540]])
    patch = cut_out(models(), (1500, 1000), black, Face((450, 450, 100, 120), points, 0.88))
    assert max(patch.pixels.shape[:2]) <= 192
    assert patch.in_picture.points == pytest.approx(points)
    assert patch.in_picture.box == pytest.approx((450, 450, 100, 120))


def test_a_face_at_the_pictures_edge_is_cut_out() -> None:
    points = np.array([[-2.0, 5], [12, 5], [5, 10], [0, 15], [10, 15]])
    patch = cut_out(models(), (40, 60), black, Face((-8, -6, 30, 34), points, 0.88))
    assert patch.in_picture.points == pytest.approx(points)


def test_the_person_is_followed_when_somebody_larger_walks_by() -> None:
    follower = Follower()
    person, passer_by = face(100, 100, 100), face(400, 80, 160)
    assert follower.pick([person]) is person
    assert follower.pick([passer_by, person]) is None  # of like size or larger: this frame does not count
    assert follower.pick([person, face(400, 80, 50)]) is person
    assert (follower.seen, follower.crowded, follower.mostly_crowded) == (3, 1, False)


def test_a_small_face_behind_the_persons_place_is_not_followed() -> None:
    follower = Follower()
    follower.pick([face(100, 100, 100)])
    moved, poster = face(300, 100, 100), face(130, 130, 40)
    assert follower.pick([moved, poster]) is moved


def test_frames_without_a_face_or_with_two_do_not_count() -> None:
    follower = Follower()
    pair = [face(0, 0, 100), face(300, 0, 100)]
    assert follower.pick([]) is None
    assert follower.seen == 0
    assert [follower.pick(pair) for _ in range(2)] == [None, None]
    assert follower.mostly_crowded
    assert follower.pick(pair[:1]) is pair[0]
    follower.pick(pair[:1])
    assert not follower.mostly_crowded


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
