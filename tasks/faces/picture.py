"""A picture of a comparison for the people who review it: both faces side by side, and the score on its scale."""

import io
from typing import TYPE_CHECKING, Any

from PIL import Image, ImageDraw, ImageFont

from tasks.contracts import Thresholds

if TYPE_CHECKING:
    from tasks.faces.engine import ComparedFaces

_WIDTH, _HEIGHT = 816, 620
_SIDE = 360
_LEFT, _RIGHT, _TOP = 32, 424, 64
_SCALE = (32, 528, 784, 544)  # where the score's scale lies
_LOWEST, _HIGHEST = -0.2, 1.0  # what of -1 to 1 it shows: cosines of faces hardly go lower
_INK, _QUIET, _PAPER, _EMPTY = "#1b2733", "#66727f", "#ffffff", "#e8ecf0"
_RED, _AMBER, _GREEN = "#d9534f", "#f0ad4e", "#3f9d5f"


def side_by_side(compared: "ComparedFaces", thresholds: Thresholds | None = None, caption: str = "") -> bytes:
    """PNG, 816 x 620 pixels: the card's face, the video's most similar frame, the similarity against the thresholds.

    Nothing is written that is not given: no names, and no ids but those in `caption`.
    """
    picture = Image.new("RGB", (_WIDTH, _HEIGHT), _PAPER)
    draw = ImageDraw.Draw(picture)
    _portrait(picture, draw, _LEFT, "ID card", compared.card_portrait)
    _portrait(picture, draw, _RIGHT, "Selfie video, most similar frame", compared.best_portrait)
    comparison = compared.comparison
    if comparison.similarity is not None:
        draw.text((_LEFT, 448), "Similarity", font=_font(17), fill=_QUIET)
        draw.text((_LEFT, 466), f"{comparison.similarity:.3f}", font=_font(38), fill=_INK)
        summary = f"mean of {len(comparison.frames)} frames with a face, of {comparison.frames_looked_at} looked at"
        draw.text((_LEFT + 120, 488), summary, font=_font(17), fill=_QUIET)
        _scale(draw, comparison.similarity, thresholds)
    else:
        draw.text((_LEFT, 448), "Rejected", font=_font(17), fill=_QUIET)
        draw.text((_LEFT, 470), str(comparison.rejection), font=_font(26), fill=_RED)
        draw.text((_LEFT, 508), comparison.detail or "", font=_font(17), fill=_INK)
    draw.text((_WIDTH - _LEFT, _HEIGHT - 14), caption, font=_font(14), fill=_QUIET, anchor="rs")
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)  # travels with Pillow, so it looks the same everywhere


def _portrait(picture: Image.Image, draw: ImageDraw.ImageDraw, left: int, title: str, bgr: Any) -> None:
    draw.text((left, 42), title, font=_font(20), fill=_INK, anchor="ls")
    if bgr is None:
        draw.rectangle((left, _TOP, left + _SIDE - 1, _TOP + _SIDE - 1), fill=_EMPTY)
        middle = (left + _SIDE // 2, _TOP + _SIDE // 2)
        draw.text(middle, "no face to show", font=_font(20), fill=_QUIET, anchor="mm")
    else:
        picture.paste(Image.fromarray(bgr[:, :, ::-1]).resize((_SIDE, _SIDE)), (left, _TOP))


def _scale(draw: ImageDraw.ImageDraw, similarity: float, thresholds: Thresholds | None) -> None:
    left, top, right, bottom = _SCALE
    font = _font(16)

    def at(value: float) -> int:
        share = (min(max(value, _LOWEST), _HIGHEST) - _LOWEST) / (_HIGHEST - _LOWEST)
        return left + round(share * (right - left))

    draw.rectangle(_SCALE, fill=_EMPTY)
    if thresholds:
        review, match = at(thresholds.review), at(thresholds.match)
        draw.rectangle((left, top, review, bottom), fill=_RED)
        draw.rectangle((review, top, match, bottom), fill=_AMBER)
        draw.rectangle((match, top, right, bottom), fill=_GREEN)
        draw.text((review - 6, bottom + 8), f"review from {thresholds.review:.3f}", font=font, fill=_INK, anchor="ra")
        draw.text((match + 6, bottom + 8), f"match from {thresholds.match:.3f}", font=font, fill=_INK, anchor="la")
        for x in (review, match):
            draw.line((x, top, x, bottom + 24), fill=_INK, width=1)
    x = at(similarity)
    draw.polygon([(x - 9, top - 14), (x + 9, top - 14), (x, top)], fill=_INK)
    draw.line((x, top, x, bottom), fill=_INK, width=3)
