"""What a player shows of a decoded frame: turned or mirrored by its display matrix, with pixels made square."""

from __future__ import annotations

import struct
from fractions import Fraction
from typing import TYPE_CHECKING, cast

from av.sidedata.sidedata import SideDataContainer, Type
from av.video.frame import VideoFrame

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_LONGEST_PIXEL = 4
"""How many times as long as wide a pixel may be, or the other way round: anamorphic video has up to 2. What claims more
is damaged, and is shown as if its pixels were square."""


def shown(frame: VideoFrame, pixel_shape: Fraction | None, longest_side: int) -> tuple[NDArray[np.uint8], float]:
    """The (height, width, 3) RGB picture that a player shows, and how many of its pixels one of these is, 1 or more.

    Args:
        pixel_shape: a pixel's width by its height, as the container or the codec has it; None is square. Pixels are
            made square by stretching, never by shrinking.
        longest_side: of the picture, at most.
    """
    import numpy as np

    shape = float(pixel_shape or 1)
    if not 1 / _LONGEST_PIXEL <= shape <= _LONGEST_PIXEL:
        shape = 1.0
    width, height = frame.width * max(1.0, shape), frame.height / min(1.0, shape)
    scale = max(1.0, max(width, height) / longest_side)
    size = (max(1, round(width / scale)), max(1, round(height / scale)))
    small = frame.reformat(*size, format="rgb24", interpolation="AREA" if scale > 1 else "BILINEAR")
    return np.ascontiguousarray(_placed(cast("NDArray[np.uint8]", small.to_ndarray()), _matrix(frame))), scale


def _matrix(frame: VideoFrame) -> tuple[int, int, int, int]:
    """(a, b, c, d): a pixel at (x, y) is shown at (a x + c y, b x + d y), shifted (ISO/IEC 14496-12, 8.3.2)."""
    try:
        found = cast("SideDataContainer", frame.side_data)[Type.DISPLAYMATRIX]
    except KeyError:
        return 1, 0, 0, 1
    a, b, _, c, d, *_ = struct.unpack_from("=9i", bytes(found))
    return a, b, c, d


def _placed(pixels: NDArray[np.uint8], matrix: tuple[int, int, int, int]) -> NDArray[np.uint8]:
    """The way of the eight that is next to the matrix: mirrored, and turned by quarters."""
    a, b, c, d = matrix
    if abs(b) + abs(c) > abs(a) + abs(d):
        pixels, a, d = pixels.transpose(1, 0, 2), c, b
    return pixels[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1]
