"""Alignment against its definition; against OpenCV in tests/integration/test_faces_engine.py."""

import numpy as np
import pytest

from tasks.faces.alignment import TEMPLATE, align, similarity_transform

POINTS = np.array(TEMPLATE)


@pytest.mark.parametrize("count", [2, 5])
@pytest.mark.parametrize("degrees", [0, 15, 90, 180, -120])
def test_recovers_rotation_scale_and_shift(count: int, degrees: float) -> None:
    angle = np.deg2rad(degrees)
    turn = 2.5 * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    moved = POINTS[:count] @ turn.T + (30, -12)
    matrix = similarity_transform(moved, POINTS[:count])
    assert np.allclose(moved @ matrix[:, :2].T + matrix[:, 2], POINTS[:count])


def test_never_mirrors() -> None:
    mirrored = POINTS * (-1, 1)
    matrix = similarity_transform(mirrored, POINTS)
    assert np.linalg.det(matrix[:, :2]) > 0


def test_points_in_one_place_are_refused() -> None:
    with pytest.raises(ValueError, match="one point"):
        similarity_transform(np.ones((5, 2)), POINTS)


@pytest.mark.parametrize("size", [(112, 112), (160, 160), (47, 55), (224, 224)])
def test_template_is_scaled_to_other_sizes_and_centred(size: tuple[int, int]) -> None:
    picture = np.zeros((112, 112, 3), np.uint8)
    nose = tuple(round(value) for value in TEMPLATE[2])
    picture[nose[1] - 2 : nose[1] + 3, nose[0] - 2 : nose[0] + 3] = 255
    crop = align(picture, POINTS, size)
    assert crop.shape == (size[1], size[0], 3)
    scale = min(size) / 112
    rows, columns = np.nonzero(crop[:, :, 0] > 127)
    assert abs(columns.mean() - (56 * scale + (size[0] - 112 * scale) / 2)) < 1.5
    assert abs(rows.mean() - (72 * scale + (size[1] - 112 * scale) / 2)) < 1.5
