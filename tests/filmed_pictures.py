"""Pictures filmed: what a camera sees of a flat picture that is held before it."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tests.media_corpus import Picture

Corners = NDArray[np.float64]


def filmed(picture: Picture, room: Picture, left: int, top: int, sway: int = 4) -> list[Picture]:
    """The picture held before a camera: moved, enlarged and tilted, with a sensor's noise.

    `room`: what is behind. `left`, `top`, `sway`: where, and how far it moves, in pixels.
    """
    random = np.random.default_rng(5)
    height, width = picture.shape[:2]
    corners = np.array([(0, 0), (width, 0), (width, height), (0, height)], np.float64)
    middle = corners.mean(axis=0)
    behind, size = Image.fromarray(room), (room.shape[1], room.shape[0])
    found = []
    for index in range(20):
        moved = middle + (corners - middle) * (1 + 0.1 * np.sin(index / 5)) + random.uniform(-8, 8, (4, 2))
        moved += (left + 2 * sway * np.sin(index / 3), top + sway * np.cos(index / 1.5))
        how = (size, Image.Transform.PERSPECTIVE, _perspective(moved, corners), Image.Resampling.BICUBIC)
        seen = Image.composite(
            Image.fromarray(picture).transform(*how), behind, Image.new("L", (width, height), 255).transform(*how)
        )
        noisy = np.asarray(seen) + random.normal(0, 4, room.shape)
        found.append(np.clip(noisy, 0, 255).astype(np.uint8))
    return found


def _perspective(points: Corners, to: Corners) -> list[float]:
    """Pillow's eight numbers of the perspective that takes four points to four others."""
    rows, right = [], []
    for (x, y), (u, v) in zip(points.tolist(), to.tolist(), strict=True):
        rows += [(x, y, 1, 0, 0, 0, -u * x, -u * y), (0, 0, 0, x, y, 1, -v * x, -v * y)]
        right += [u, v]
    return [float(value) for value in np.linalg.solve(np.array(rows), np.array(right))]
