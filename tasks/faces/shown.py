"""What the engine hands over for the picture of a comparison. Importable without numpy and cv2."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tasks.contracts import Box, FaceComparison

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Shown:
    """A face in its surroundings, for people.

    `pixels`: (height, width, 3) RGB, longest side at most 640. `box` and `points`, (5, 2) or (2, 2), are in these
    pixels. `aligned`: (height, width, 3) RGB, the recogniser's crop.
    """

    pixels: "NDArray[np.uint8]"
    box: Box
    points: "NDArray[np.float64]"
    aligned: "NDArray[np.uint8]"


@dataclass(frozen=True)
class ComparedFaces:
    """A comparison, and what a picture of it needs.

    `card_pixels`: the card, (height, width, 3) RGB, longest side at most 640, when it could be read but shows no single
    face. `frames`: one for each of `comparison.frames`, in their order. `looked_at`: second, and what became of that
    frame: "used", "spare", "no face", "several faces".
    """

    comparison: FaceComparison
    card: Shown | None = None
    card_pixels: "NDArray[np.uint8] | None" = None
    frames: tuple[Shown, ...] = ()
    duration_seconds: float = 0.0
    looked_at: tuple[tuple[float, str], ...] = ()
