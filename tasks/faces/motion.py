"""Motion: whether a face moves as a face does, or as a picture that is filmed."""

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

SIDE = 64
MARGIN = 0.1

_OVAL = (round(0.36 * SIDE), round(0.42 * SIDE))

_ITERATIONS, _CLOSE_ENOUGH = 30, 1e-3


def motion(faces: "Sequence[NDArray[np.uint8]]") -> float:
    """How much of the change from frame to frame no movement of a flat picture explains: 0 for none, up to 1.

    `faces`: (SIDE, SIDE, 3) RGB crops, aligned with MARGIN, in the order of time. Between each two the homography is
    sought that makes their ovals from brow to chin most alike (enhanced correlation: Evangelidis and Psarakis, 2008):
    whatever a flat picture does before a camera follows one homography, and light that changes evenly does not count.
    What is left, one minus the correlation, comes from a head that turns, eyes that blink, a mouth that speaks; of all
    pairs the median. The surroundings do not count: a picture's edge moves before what is behind it. Fewer than two
    faces show no motion: 0.

    Measured: a man who speaks 0.05 to 0.11; portraits that are moved, turned and tilted before the camera, with noise
    and compression, 0.002 to 0.004; one frame repeated 0.000.
    """
    import cv2
    import numpy as np

    grey = [cv2.GaussianBlur(cv2.cvtColor(face, cv2.COLOR_RGB2GRAY).astype(np.float32), (0, 0), 1.0) for face in faces]
    oval = cv2.ellipse(
        np.zeros((SIDE, SIDE), np.uint8), (SIDE // 2, round(0.55 * SIDE)), _OVAL, 0, 0, 360, color=255, thickness=-1
    )
    stop = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, _ITERATIONS, _CLOSE_ENOUGH)
    left = []
    for one, other in pairwise(grey):
        if min(one.std(), other.std()) < 1:
            left.append(0.0)  # nothing to see in one of them
            continue
        try:
            flat = np.eye(3, dtype=np.float32)
            alike, _ = cv2.findTransformECC(one, other, flat, cv2.MOTION_HOMOGRAPHY, stop, oval, 1)
        except cv2.error:  # it does not converge where two frames have little in common
            alike = 0.0
        left.append(min(1.0, max(0.0, 1.0 - alike)))
    return float(np.median(left)) if left else 0.0
