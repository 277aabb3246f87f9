"""The report picture's part on the score: where it lies between those of two people and those of one."""

import math

from tasks.contracts import FaceComparison, Thresholds
from tasks.faces.models import Measured
from tasks.faces.picture_parts import (
    AMBER,
    GREEN,
    INK,
    MARGIN,
    QUIET,
    RED,
    RIGHT,
    Page,
    Point,
    text_width,
    wrapped,
)

_LOWEST, _HIGHEST = -0.2, 1.0  # what of -1 to 1 it shows: cosines of faces hardly go lower
_BAND, _BELL = 16, 76  # heights, pixels
# A picture is shared by all sessions with these two files, and outlives a change of the thresholds.
_IN_FORCE = "Thresholds in force when this was drawn. Each decision records the thresholds that it was made with."
_NONE = "No thresholds were set for these models when this was drawn."


def scale(
    page: Page, y: float, comparison: FaceComparison, thresholds: Thresholds | None, measured: Measured | None
) -> float:
    """Draws the part below y and returns its lower end; nothing for a comparison without any score."""
    if comparison.similarity is None and not comparison.frames:
        return y
    y += 50
    page.title(y, "Similarity")
    _legend(page, y, comparison, measured)
    top = y + 28 + (0 if comparison.similarity is None else 34) + (_BELL if measured else 0)
    if measured:
        _bells(page, top, measured)
    _bands(page, top, thresholds)
    if comparison.similarity is not None:
        _pin(page, y + 36, top + _BAND, comparison.similarity)
    for frame in comparison.frames:
        page.ring(at(frame.similarity), top + _BAND / 2, 5.0, INK)
    bottom = top + _BAND + 22
    lines = (thresholds.review, thresholds.match) if thresholds else ()
    for value in (tenths / 10 for tenths in range(-2, 11, 2)):
        if all(abs(at(value) - at(line)) > 18 for line in lines):  # else the threshold's line cuts through it
            page.text(at(value), bottom, f"{value:.1f}", 14, QUIET, "m")
    if thresholds:
        bottom += 24
        _threshold_labels(page, top + _BAND, bottom, thresholds)
    bottom += 4
    for note in (_IN_FORCE if thresholds else _NONE, *([measured.source] if measured else [])):
        for line in wrapped(note.split(), 14, RIGHT - MARGIN, most=3):
            bottom += 22
            page.text(MARGIN, bottom, line, 14, QUIET)
    return bottom


def at(value: float) -> float:
    """The x of a similarity on the scale, in pixels."""
    inset = 12  # for the outer numbers and marks
    share = (min(max(value, _LOWEST), _HIGHEST) - _LOWEST) / (_HIGHEST - _LOWEST)
    return MARGIN + inset + share * (RIGHT - MARGIN - 2 * inset)


def _bands(page: Page, top: float, thresholds: Thresholds | None) -> None:
    left, right = at(_LOWEST), at(_HIGHEST)
    page.rectangle(left, top, right, top + _BAND, RED if thresholds else "#cdd5dc")
    if thresholds:
        page.rectangle(at(thresholds.review), top, right, top + _BAND, AMBER)
        page.rectangle(at(thresholds.match), top, right, top + _BAND, GREEN)


def _threshold_labels(page: Page, top: float, y: float, thresholds: Thresholds) -> None:
    """Under the numbers, one at each side of the pair of thresholds, moved where the page ends."""
    review, match = f"review from {thresholds.review:.3f}", f"match from {thresholds.match:.3f}"
    wide, wider = text_width(review, 14), text_width(match, 14)
    left = min(max(at(thresholds.review) - wide - 8, MARGIN), RIGHT - wide - wider - 16)
    right = min(max(at(thresholds.match) + 8, left + wide + 16), RIGHT - wider)
    page.text(left, y, review, 14, INK)
    page.text(right, y, match, 14, INK)
    for x in (at(thresholds.review), at(thresholds.match)):
        beside = left + wide < x < right  # else the line would cut through a text
        page.rectangle(x, top, x + 1, y + 3 if beside else y - 14, INK)


def _bells(page: Page, bottom: float, measured: Measured) -> None:
    """Normal approximations of equal area; the steeper one is as high as there is room."""
    bells = (
        (measured.impostor[0], max(measured.impostor[1], 1e-3), RED),
        (measured.genuine[0], max(measured.genuine[1], 1e-3), GREEN),
    )
    narrowest = min(deviation for _, deviation, _ in bells)
    for mean, deviation, colour in bells:
        start, end = max(_LOWEST, mean - 3.5 * deviation), min(_HIGHEST, mean + 3.5 * deviation)
        height = _BELL * narrowest / deviation
        values = [start + (end - start) * step / 200 for step in range(201)]
        curve: list[Point] = [
            (at(value), bottom - height * math.exp(-0.5 * ((value - mean) / deviation) ** 2)) for value in values
        ]
        page.polygon([(curve[0][0], bottom), *curve, (curve[-1][0], bottom)], colour, 0.22)
        page.path(curve, colour, 1.6)


def _pin(page: Page, top: float, bottom: float, similarity: float) -> None:
    """The score on its label, a stem through the curves, an arrowhead at the band."""
    x, label = at(similarity), f"{similarity:.3f}"
    page.rectangle(x - 1, top - 6, x + 1, bottom, INK)
    _arrowhead(page, x, bottom - _BAND)
    half = text_width(label, 16) / 2 + 12
    page.pill(min(max(x, MARGIN + half), RIGHT - half) - half, top, label, 16, INK)


def _arrowhead(page: Page, x: float, y: float) -> None:
    page.polygon([(x - 8, y - 13), (x + 8, y - 13), (x, y)], INK)


def _legend(page: Page, y: float, comparison: FaceComparison, measured: Measured | None) -> None:
    x = MARGIN + 128.0

    def explain(meaning: str) -> float:
        page.text(x + 14, y, meaning, 14, QUIET)
        return x + text_width(meaning, 14) + 44

    if comparison.frames:
        page.ring(x, y - 5, 5.0, INK)
        x = explain("a frame")
    if comparison.similarity is not None:
        _arrowhead(page, x, y + 1)
        x = explain("all frames together")
    for colour, meaning in ((RED, "different people"), (GREEN, "same person")) if measured else ():
        page.polygon([(x - 7.0, y), (x + 7.0, y), (x + 7.0, y - 10), (x - 7.0, y - 10)], colour, 0.4)
        x = explain(meaning)
