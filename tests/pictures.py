"""Reads back what the reviewers' picture shows."""

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageColor

from tasks.faces.picture_parts import AMBER, GREEN, RED
from tasks.faces.picture_scale import at


def drawn_thresholds(content: bytes) -> tuple[float, float]:
    """Where the scale's band turns from red to amber, and from amber to green: review and match.

    Raises:
        LookupError: no row of the picture has all three colours.
    """
    with Image.open(io.BytesIO(content)) as image:
        pixels = np.asarray(image.convert("RGB")).astype(int)
    red, amber, green = (_is(pixels, colour) for colour in (RED, AMBER, GREEN))
    rows = np.flatnonzero((red.sum(1) > 20) & (amber.sum(1) > 20) & (green.sum(1) > 20))
    if not rows.size:
        raise LookupError("The picture has no scale with thresholds.")
    places = [at(tenthousandths / 10_000) for tenthousandths in range(-2000, 10_001)]
    found = [int(np.flatnonzero(colour[rows[0]])[0]) for colour in (amber, green)]
    review, match = (int(np.searchsorted(places, place)) / 10_000 - 0.2 for place in found)
    return review, match


def _is(pixels: NDArray[np.int_], colour: str) -> NDArray[np.bool_]:
    near: NDArray[np.bool_] = (np.abs(pixels - ImageColor.getrgb(colour)) < 24).all(axis=2)
    return near
