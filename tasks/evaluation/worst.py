"""The pairs that are hardest to tell apart, as a picture: for people who want to know why."""

import io
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from tasks.evaluation.pairs import Pair

_SIDE, _GAP, _ROW, _MARGIN, _HEAD = 132, 6, 168, 32, 96
_COLUMN = 2 * _SIDE + _GAP + 64
_INK, _QUIET, _PAPER, _EMPTY = "#1b2733", "#66727f", "#ffffff", "#e8ecf0"


class Shown(NamedTuple):
    """One pair: its score, and both aligned faces as JPEG."""

    score: float
    reference: bytes | None
    probe: bytes | None


def lowest_and_highest(pairs: Sequence[Pair], scores: NDArray[np.float64], count: int) -> tuple[list[int], list[int]]:
    """Indices of the genuine pairs with the lowest scores and of the impostor pairs with the highest, worst first.

    Pairs without a score (NaN) do not take part, and a pair that is repeated does once.
    """
    chosen: dict[bool, dict[frozenset[str], int]] = {True: {}, False: {}}
    order = [int(index) for index in np.argsort(scores, kind="stable") if not np.isnan(scores[index])]
    for genuine, indices in ((True, order), (False, order[::-1])):
        for index in indices:
            if len(chosen[genuine]) == count:
                break
            if pairs[index].genuine is genuine:
                chosen[genuine].setdefault(frozenset(pairs[index][:2]), index)
    return list(chosen[True].values()), list(chosen[False].values())


def worst_pairs(lowest: Sequence[Shown], highest: Sequence[Shown]) -> bytes:
    """PNG: genuine pairs that look unlike at the left, impostor pairs that look alike at the right. No names."""
    rows = max(len(lowest), len(highest), 1)
    picture = Image.new("RGB", (2 * _MARGIN + 2 * _COLUMN, _HEAD + rows * _ROW), _PAPER)
    draw = ImageDraw.Draw(picture)
    for column, title, note, pairs in (
        (0, "Same person, lowest scores", "wrong when below the threshold", lowest),
        (1, "Different people, highest scores", "wrong when at or above the threshold", highest),
    ):
        left = _MARGIN + column * _COLUMN
        draw.text((left, 44), title, font=_font(20), fill=_INK, anchor="ls")
        draw.text((left, 68), note, font=_font(14), fill=_QUIET, anchor="ls")
        for row, pair in enumerate(pairs):
            top = _HEAD + row * _ROW
            _face(picture, draw, (left, top), pair.reference)
            _face(picture, draw, (left + _SIDE + _GAP, top), pair.probe)
            draw.text((left, top + _SIDE + 20), f"{pair.score:.4f}", font=_font(17), fill=_INK, anchor="ls")
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def as_jpeg(aligned: NDArray[np.uint8]) -> bytes:
    """An aligned (height, width, 3) RGB crop, small enough to keep thousands of."""
    picture = Image.fromarray(aligned)
    picture.thumbnail((160, 160))
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def _face(picture: Image.Image, draw: ImageDraw.ImageDraw, at: tuple[int, int], jpeg: bytes | None) -> None:
    if jpeg is None:
        draw.rectangle((*at, at[0] + _SIDE - 1, at[1] + _SIDE - 1), fill=_EMPTY)
        return
    with Image.open(io.BytesIO(jpeg)) as face:
        picture.paste(face.convert("RGB").resize((_SIDE, _SIDE), Image.Resampling.LANCZOS), at)


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)  # travels with Pillow, so it looks the same everywhere
