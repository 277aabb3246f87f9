"""The report picture's part on the selfie video: the frames used, over a time line of all frames looked at."""

import math
from collections.abc import Sequence
from itertools import accumulate

from tasks.contracts import FaceComparison, FaceQuality
from tasks.faces.picture_parts import BLUE, INK, MARGIN, PAPER, QUIET, RIGHT, Page, marked, text_width
from tasks.faces.shown import ComparedFaces

_MOST = 10  # frames that a row has room for
_START, _END = MARGIN + 128, RIGHT - 12  # of the time line; at the left of it are the rows' labels
_GAP, _WIDEST = 10, 160  # between two frames' pictures, and of one
_ROW = 22
_FIGURES = {
    "eye distance": "{0.eye_distance:.0f} px",
    "sharpness": "{0.sharpness:.3f}",
    "brightness": "{0.brightness:.2f}",
    "contrast": "{0.contrast:.2f}",
    "yaw": "{0.yaw:z.0f}°",
    "pitch": "{0.pitch:z.0f}°",
    "roll": "{0.roll:z.0f}°",
    "confidence": "{0.confidence:.2f}",
}
_KINDS = ("used", "spare", "no face", "several faces")


def quality_rows(page: Page, y: float, columns: Sequence[tuple[float, FaceQuality]], left: float = MARGIN) -> float:
    """A row for each figure, a column for each face, centred at its x. Returns the next row's baseline."""
    for label, figure in _FIGURES.items() if columns else ():
        page.row(y, label, [(x, figure.format(quality)) for x, quality in columns], left=left)
        y += _ROW
    return y


def video(page: Page, y: float, compared: ComparedFaces) -> float:
    """Draws the part below y and returns its lower end."""
    comparison = compared.comparison
    looked_at = compared.looked_at or tuple((frame.time_seconds, "used") for frame in comparison.frames)
    seconds = [second for second, _ in looked_at] + [frame.time_seconds for frame in comparison.frames]
    end = max([compared.duration_seconds, *seconds]) or 1.0
    chosen = _chosen(comparison)
    y += 46
    page.title(y, "Selfie video")
    page.text(_START, y, _summary(comparison, len(chosen)), 14, QUIET)
    y += 14
    if chosen:
        y = _frames(page, y, compared, chosen, end)
    else:
        page.photograph(None, MARGIN, y, RIGHT - MARGIN, 100)
        y += 122
    return _time_line(page, y, looked_at, end) if seconds or compared.duration_seconds else y


def _chosen(comparison: FaceComparison) -> list[int]:
    """The frames to show, in the order of time: those of the most weight when there are too many."""
    order = sorted(range(len(comparison.frames)), key=lambda index: -comparison.frames[index].weight)
    return sorted(order[:_MOST])


def _summary(comparison: FaceComparison, shown: int) -> str:
    used, looked_at = len(comparison.frames), comparison.frames_looked_at
    text = f"{used} of {looked_at} frames used" if looked_at else ""
    return text + (f", the {shown} of most weight shown" if shown < used else "")


def _frames(page: Page, y: float, compared: ComparedFaces, chosen: list[int], end: float) -> float:
    """Pictures and figures, as near above their time as their neighbours allow, and connectors to it."""
    side = min(_WIDEST, (RIGHT - _START + 12 - _GAP * (len(chosen) - 1)) / len(chosen))
    frames = [compared.comparison.frames[index] for index in chosen]
    times = [_at(frame.time_seconds, end) for frame in frames]
    columns = _apart(times, side + _GAP, _START - 12 + side / 2, RIGHT - side / 2)
    for x, index in zip(columns, chosen, strict=True):
        shown = compared.frames[index] if index < len(compared.frames) else None
        picture = None if shown is None else marked(shown, round(side), round(side), around=0.4)
        page.photograph(picture, round(x - side / 2), y, round(side), round(side))
    y += round(side) + 25
    page.row(y, "similarity", [(x, f"{frame.similarity:.3f}") for x, frame in zip(columns, frames, strict=True)], 18)
    y += _ROW + 2
    page.row(y, "weight", [(x, f"{frame.weight:.0%}") for x, frame in zip(columns, frames, strict=True)])
    y = quality_rows(page, y + _ROW, [(x, frame.quality) for x, frame in zip(columns, frames, strict=True)])
    page.row(y, "time", [(x, f"{frame.time_seconds:.2f} s") for x, frame in zip(columns, frames, strict=True)])
    y += 10
    for x, time in zip(columns, times, strict=True):
        page.path([(x + (time - x) * _ease(step / 16), y + 36 * step / 16) for step in range(17)], "#a9c3dd", 1.2)
    return y + 44


def _at(second: float, end: float) -> float:
    return _START + (_END - _START) * second / end


def _ease(share: float) -> float:
    return share * share * (3 - 2 * share)


def _apart(wanted: Sequence[float], gap: float, lowest: float, highest: float) -> list[float]:
    """Positions in the same order, at least `gap` apart and within bounds, otherwise near those wanted.

    The mean of pushing neighbours to the right and of pushing them to the left: both keep the gaps, so it does.
    """
    last = len(wanted) - 1
    held = [min(max(x, lowest + gap * i), highest - gap * (last - i)) for i, x in enumerate(wanted)]
    rightwards = list(accumulate(held, lambda before, x: max(x, before + gap)))
    leftwards = list(accumulate(reversed(held), lambda after, x: min(x, after - gap)))
    return [(one + other) / 2 for one, other in zip(rightwards, reversed(leftwards), strict=True)]


def _time_line(page: Page, y: float, looked_at: Sequence[tuple[float, str]], end: float) -> float:
    page.text(MARGIN, y + 5, "looked at", 14, QUIET)
    page.rectangle(_START, y - 1, _END, y + 1, "#b6c0c9")
    for second, kind in sorted(looked_at, key=lambda pair: pair[1] == "used"):  # these over the others
        _mark(page, _at(second, end), y, kind)
    page.text(_END, y + 28, f"{end:.1f} s", 14, QUIET, "r")
    step = _round_step(end)
    for index in range(math.ceil(end / step)):
        x, label = _at(index * step, end), f"{index * step:g} s"
        page.rectangle(x, y + 9, x + 1, y + 13, QUIET)
        if x < _END - 80:
            page.text(x, y + 28, label, 14, QUIET, "m")
    x, y = float(_START), y + 54
    for kind in [kind for kind in _KINDS if kind in {each for _, each in looked_at}]:
        _mark(page, x, y - 5, kind)
        page.text(x + 14, y, kind, 14, QUIET)
        x += text_width(kind, 14) + 44
    return y


def _round_step(end: float) -> float:
    """1, 2 or 5 times a power of ten, so that the line has 4 to 10 of them."""
    power = 10.0 ** math.floor(math.log10(end / 4))
    return max(power * factor for factor in (1, 2, 5) if power * factor <= end / 4)


def _mark(page: Page, x: float, y: float, kind: str) -> None:
    if kind == "used":
        page.dot(x, y, 6.5, BLUE)
    elif kind == "no face":
        for slope in (-1, 1):
            page.path([(x - 4.5, y - 4.5 * slope), (x + 4.5, y + 4.5 * slope)], INK, 1.6)
    elif kind == "several faces":
        for half, colour in ((6.0, INK), (4.4, PAPER)):
            page.polygon([(x - half, y), (x, y - half), (x + half, y), (x, y + half)], colour)
    else:
        page.ring(x, y, 5.5, QUIET)
