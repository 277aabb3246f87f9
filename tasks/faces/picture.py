"""A picture of a comparison for the people who review it: the faces, how good they are, and the score on its scale."""

from PIL import Image

from tasks.contracts import DecisionKind, FaceComparison, Thresholds, Verdict
from tasks.faces.models import Measured
from tasks.faces.picture_parts import (
    GREEN,
    INK,
    MARGIN,
    PAPER,
    QUIET,
    RED,
    RIGHT,
    WIDTH,
    Page,
    fitted,
    marked,
    text_width,
    wrapped,
)
from tasks.faces.picture_scale import scale
from tasks.faces.picture_video import quality_rows, video
from tasks.faces.shown import ComparedFaces

_TALLEST = 3000  # more than any report needs: every text is held to a number of lines
_CARD = (552, 396)
_CROP = 216
_COLOURS = {DecisionKind.MATCH: GREEN, DecisionKind.REVIEW: "#b87a12", DecisionKind.EXPIRED: QUIET}


def report(
    compared: ComparedFaces,
    thresholds: Thresholds | None,
    measured: Measured | None = None,
    caption: str = "",
    verdict: Verdict | None = None,
) -> bytes:
    """JPEG, 1200 pixels wide and as high as needed.

    Nothing is written that is not given: no names, and no ids but those in `caption`.
    """
    page = Page(Image.new("RGB", (WIDTH, _TALLEST), PAPER))
    y = _heading(page, compared.comparison, verdict)
    y = _faces(page, y, compared)
    y = video(page, y, compared)
    y = scale(page, y, compared.comparison, thresholds, measured)
    return page.jpeg(_foot(page, y, compared.comparison, caption))


def _heading(page: Page, comparison: FaceComparison, verdict: Verdict | None) -> float:
    y, width = 66.0, RIGHT - MARGIN
    if comparison.similarity is not None:
        score = f"{comparison.similarity:.3f}"
        page.text(RIGHT, y, score, 46, INK, "r")
        page.text(RIGHT - text_width(score, 46) - 12, y, "similarity", 16, QUIET, "r")
        width -= 260
    decision = verdict.decision if verdict else DecisionKind.REJECTED if comparison.rejection else None
    reason = verdict.reason if verdict else comparison.rejection
    if decision is None or reason is None:
        page.text(MARGIN, y, "Face comparison", 28)
        return y + 20
    colour = _COLOURS.get(decision, RED)
    end = page.pill(MARGIN, y - 3, decision.replace("_", " ").upper(), 19, colour)
    page.text(end + 16, y - 2, reason, 22, colour)
    y += 12
    details = [verdict.detail if verdict else None, comparison.detail]
    for detail in dict.fromkeys(detail for detail in details if detail):
        for line in wrapped(detail.split(), 16, width):
            y += 22
            page.text(MARGIN, y, line, 16)
    return y + 10


def _faces(page: Page, y: float, compared: ComparedFaces) -> float:
    """The card at the left, the crops that the recogniser compares at the right, over what was measured on them."""
    comparison, card = compared.comparison, compared.card
    page.title(y + 30, "ID card")
    top = y + 42
    if card is not None:
        page.photograph(marked(card, *_CARD), MARGIN, top, *_CARD)
    else:
        page.photograph(fitted(compared.card_pixels, *_CARD), MARGIN, top, *_CARD)

    left = MARGIN + _CARD[0] + 32
    best = max(range(len(comparison.frames)), key=lambda index: comparison.frames[index].weight, default=None)
    probe = compared.frames[best] if best is not None and best < len(compared.frames) else None
    crops = ((RIGHT - 1.5 * _CROP - 12, "Reference, aligned", card), (RIGHT - _CROP / 2, "Best frame, aligned", probe))
    for middle, title, shown in crops:
        page.title(y + 30, title, middle - _CROP / 2)
        crop = fitted(shown.aligned if shown else None, _CROP, _CROP)
        page.photograph(crop, middle - _CROP / 2, top, _CROP, _CROP)
    measured = (comparison.reference, None if best is None else comparison.frames[best].quality)
    columns = [(crop[0], quality) for crop, quality in zip(crops, measured, strict=True) if quality]
    quality_rows(page, top + _CROP + 23, columns, left)
    return top + _CARD[1]


def _foot(page: Page, y: float, comparison: FaceComparison, caption: str) -> float:
    spread, motion, real = comparison.spread, comparison.motion, comparison.anti_spoofing
    stages = ", ".join(f"{name} {taken:.2f}" for name, taken in comparison.seconds.items() if name != "total")
    total = comparison.seconds.get("total", sum(comparison.seconds.values()))
    parts = [
        *([] if spread is None else [f"Spread between frames {spread:.3f}"]),
        *([] if motion is None else [f"Motion {motion:.3g}"]),
        f"Anti-spoofing {'not run' if real is None else f'{real:.0%} of frames real'}",
        f"Device {comparison.device}",
        *([f"{total:.2f} s" + (f" ({stages})" if stages else "")] if comparison.seconds else []),
    ]
    y += 24
    page.rectangle(MARGIN, y, RIGHT, y + 1, "#c9d1d8")
    for line in wrapped(parts, 14, RIGHT - MARGIN, joint="   ·   "):
        y += 24
        page.text(MARGIN, y, line, 14, QUIET)
    for line in wrapped(caption.split(), 14, RIGHT - MARGIN, most=3):
        y += 24
        page.text(RIGHT, y, line, 14, QUIET, "r")
    return y + 26
