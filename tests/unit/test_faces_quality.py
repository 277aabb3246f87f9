"""Quality, pooling and motion, on drawn faces and plain arrays."""

import math

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from tasks.faces.alignment import TEMPLATE
from tasks.faces.motion import SIDE, motion
from tasks.faces.pooling import best_of_parts, pooled, spread, unit
from tasks.faces.quality import measure, weight
from tests.faces import quality

EYES = 35.2372
CROP = np.full((112, 112, 3), 128, np.uint8)


def head(yaw: float, pitch: float, roll: float = 0.0) -> NDArray[np.float64]:
    """Landmarks of a face of SFace's proportions, turned, seen from afar (orthographic), 100 pixels between the eyes.

    In distances between the eyes: x to the picture's right, y down, z towards the camera; the nose stands out by 0.5.
    """
    x, y = (np.array(TEMPLATE) - (55.9132, 51.599)).T / EYES
    points = np.stack([x, y, [0, 0, 0.5, 0, 0]], axis=1)
    a, b, c = (math.radians(angle) for angle in (yaw, pitch, roll))
    turn = np.array([[math.cos(a), 0, math.sin(a)], [0, 1, 0], [-math.sin(a), 0, math.cos(a)]])
    nod = np.array([[1, 0, 0], [0, math.cos(b), math.sin(b)], [0, -math.sin(b), math.cos(b)]])
    tilt = np.array([[math.cos(c), -math.sin(c), 0], [math.sin(c), math.cos(c), 0], [0, 0, 1]])
    seen: NDArray[np.float64] = (points @ turn.T @ nod.T @ tilt.T)[:, :2] * 100 + 200
    return seen


@pytest.mark.parametrize("yaw", [-60, -30, 0, 20, 45])
def test_yaw_is_found_from_the_nose(yaw: float) -> None:
    assert measure(head(yaw, 0), 0.9, CROP, 1).yaw == pytest.approx(yaw, abs=2)


@pytest.mark.parametrize("pitch", [-40, -15, 0, 25, 45])
def test_pitch_is_found_from_the_nose(pitch: float) -> None:
    assert measure(head(0, pitch), 0.9, CROP, 1).pitch == pytest.approx(pitch, abs=2)


def test_a_tilted_head_is_not_turned() -> None:
    found = measure(head(0, 0, 25), 0.9, CROP, 1)
    assert (found.yaw, found.pitch, found.roll) == pytest.approx((0, 0, 25), abs=2)


def test_the_eyes_distance_is_in_the_files_own_pixels() -> None:
    assert measure(head(0, 0), 0.9, CROP, 2.5).eye_distance == pytest.approx(250, abs=2)


def test_landmarks_in_one_point_are_measured_without_trouble() -> None:
    found = measure(np.zeros((5, 2)), 0.9, CROP, 1)
    assert (found.eye_distance, found.yaw, found.sharpness, found.contrast) == (0, 0, 0, 0)
    assert measure(np.zeros((2, 2)), 0.9, CROP, 1).pitch == 0


def test_blur_lowers_sharpness_and_light_does_not() -> None:
    noise = np.random.default_rng(1).integers(60, 120, (112, 112, 1), np.uint8).repeat(3, axis=2)
    sharp = cv2.GaussianBlur(noise, (0, 0), 0.8)
    blurred = cv2.GaussianBlur(noise, (0, 0), 2.0)
    points = head(0, 0)
    found = [measure(points, 0.9, np.asarray(crop), 1) for crop in (sharp, blurred, sharp * 2)]
    assert found[0].sharpness > 1.5 * found[1].sharpness
    assert found[2].sharpness == pytest.approx(found[0].sharpness, rel=0.05)
    assert found[2].brightness == pytest.approx(2 * found[0].brightness, rel=0.02)
    assert found[2].contrast == pytest.approx(2 * found[0].contrast, rel=0.02)


@pytest.mark.parametrize(
    "worse", [{"eye_distance": 20.0}, {"sharpness": 0.1}, {"brightness": 0.1}, {"brightness": 0.9}, {"yaw": 40.0}]
)
def test_a_worse_frame_weighs_less(worse: dict[str, float]) -> None:
    assert 0 < weight(quality(**worse)) < weight(quality()) <= 1


def test_the_probe_is_the_weighted_mean_at_unit_length() -> None:
    embeddings = np.array([[1.0, 0.0], [0.0, 1.0]])
    assert pooled(embeddings, [0.5, 0.5]) == pytest.approx([math.sqrt(0.5)] * 2)
    assert pooled(embeddings, [3, 1]) == pytest.approx(np.array([3, 1]) / math.sqrt(10))
    assert unit(np.zeros((1, 2))).tolist() == [[0, 0]]


def test_spread_is_the_smallest_cosine_between_two_frames() -> None:
    assert spread(unit(np.array([[1.0, 0.0], [1.0, 1.0], [1.0, 0.1]]))) == pytest.approx(math.sqrt(0.5))
    assert spread(np.array([[1.0, 0.0]])) is None


def test_no_part_of_the_video_goes_unseen() -> None:
    times = [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]
    assert best_of_parts(times, [0.9, 0.8, 0.7, 0.1, 0.2, 0.1], 2) == [0, 4]
    assert best_of_parts(times, [1.0] * 6, 3) == [0, 2, 4]
    assert best_of_parts(times[:2], [0.1, 0.2], 5) == [0, 1]


def face_picture(mouth: int = 0) -> NDArray[np.uint8]:
    """A drawn face in a drawn room, 200 x 200."""
    picture = np.full((200, 200, 3), 90, np.uint8)
    picture[:, ::20] = 160
    cv2.ellipse(picture, (100, 100), (60, 80), 0, 0, 360, (200, 170, 150), -1)
    for x in (75, 125):
        cv2.circle(picture, (x, 80), 8, (40, 40, 40), -1)
    cv2.ellipse(picture, (100, 140), (25, 4 + mouth), 0, 0, 360, (120, 40, 40), -1)
    return picture


def filmed(picture: NDArray[np.uint8], seed: int) -> NDArray[np.uint8]:
    """The picture held a little askew, with noise and other light."""
    chance = np.random.default_rng(seed)
    corners = np.array([[0, 0], [200, 0], [200, 200], [0, 200]], np.float32)
    moved = corners + chance.uniform(-8, 8, (4, 2)).astype(np.float32)
    flat = cv2.getPerspectiveTransform(corners, moved)
    seen = cv2.warpPerspective(picture, flat, (200, 200), borderMode=cv2.BORDER_REPLICATE)
    lit = seen * chance.uniform(0.9, 1.1) + chance.normal(0, 3, seen.shape)
    return np.asarray(cv2.resize(np.clip(lit, 0, 255).astype(np.uint8), (SIDE, SIDE), interpolation=cv2.INTER_AREA))


def test_a_flat_picture_shows_no_motion_however_it_is_held() -> None:
    assert motion([filmed(face_picture(), 0)] * 5) == pytest.approx(0, abs=1e-4)
    assert motion([filmed(face_picture(), seed) for seed in range(5)]) < 0.015


def test_a_mouth_that_speaks_is_motion() -> None:
    assert motion([filmed(face_picture(mouth), mouth) for mouth in (0, 14, 3, 18, 6)]) > 0.015


def test_one_frame_and_plain_ones_show_no_motion() -> None:
    assert motion([]) == motion([filmed(face_picture(), 0)]) == 0
    assert motion([np.zeros((SIDE, SIDE, 3), np.uint8)] * 3) == 0
