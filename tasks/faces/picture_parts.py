"""What the report picture is drawn with: measured and wrapped text, smooth shapes, photographs that fit their field."""

import io
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import chain
from typing import TYPE_CHECKING, Literal

from PIL import Image, ImageDraw, ImageFont

from tasks.contracts import Box
from tasks.faces.shown import Shown

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

WIDTH, MARGIN = 1200, 36
RIGHT = WIDTH - MARGIN
INK, QUIET, HAIR, EMPTY, PAPER = "#1b2733", "#66727f", "#e3e8ec", "#eef1f4", "#ffffff"
RED, AMBER, GREEN, BLUE = "#c8453f", "#e3a73f", "#3f9463", "#2f6fb0"

_SPACE = 0.3  # between words, as a share of the size: this font's own, 0.21, runs figures and units together
_SMOOTH = 4  # shapes are drawn this much larger and shrunk: Pillow's own have stairs
_ENLARGED = 3.0  # at most, so that a few pixels do not fill the page

Point = tuple[float, float]


@lru_cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)  # travels with Pillow, so it looks the same everywhere


@lru_cache(maxsize=4096)
def text_width(text: str, size: int) -> float:
    """Width in pixels of one line."""
    words = text.split(" ")
    return sum(_font(size).getlength(word) for word in words) + _SPACE * size * (len(words) - 1)


def wrapped(pieces: Iterable[str], size: int, width: float, most: int = 8, joint: str = " ") -> list[str]:
    """Lines of at most `width` pixels, broken between pieces, within a piece only when it alone is too long.

    At most `most` lines; the last one then ends in an ellipsis.
    """
    lines: list[str] = []
    for piece in chain.from_iterable(_broken(each, size, width) for each in pieces):
        if lines and text_width(lines[-1] + joint + piece, size) <= width:
            lines[-1] += joint + piece
        elif len(lines) == most:
            while text_width(lines[-1] + "…", size) > width:
                lines[-1] = lines[-1][:-1]
            lines[-1] += "…"
            break
        else:
            lines.append(piece)
    return lines


def _broken(piece: str, size: int, width: float) -> Iterator[str]:
    while len(piece) > 1 and (whole := text_width(piece, size)) > width:
        count = max(1, int(len(piece) * width / whole))
        while count > 1 and text_width(piece[:count], size) > width:
            count -= 1
        yield piece[:count]
        piece = piece[count:]
    yield piece


class Page:
    """A picture under the pen. Coordinates are pixels, y downwards; a text's y is its baseline."""

    def __init__(self, image: Image.Image) -> None:
        self.image = image
        self._draw = ImageDraw.Draw(image)

    def jpeg(self, height: float) -> bytes:
        """The upper `height` pixels."""
        buffer = io.BytesIO()
        # As a PNG it takes 37 ms instead of 5, a quarter of the comparison itself. Colours as sharp as the rest.
        self.image.crop((0, 0, self.image.width, round(height))).save(buffer, "JPEG", quality=92, subsampling="4:4:4")
        return buffer.getvalue()

    def text(
        self,
        x: float,
        y: float,
        text: str,
        size: int = 14,
        colour: str = INK,
        align: Literal["l", "m", "r"] = "l",
        stroke: float = 0.0,
    ) -> None:
        """One line; `align`: x is its left end, middle or right end. `stroke` thickens it, the font having no bold."""
        x -= text_width(text, size) * {"l": 0.0, "m": 0.5, "r": 1.0}[align]
        for word in text.split(" "):
            self._draw.text((x, y), word, font=_font(size), fill=colour, anchor="ls", stroke_width=stroke)
            x += text_width(word, size) + _SPACE * size

    def title(self, y: float, text: str, x: float = MARGIN) -> None:
        """A section's title."""
        self.text(x, y, text, 17, stroke=0.3)

    def rectangle(self, left: float, top: float, right: float, bottom: float, colour: str) -> None:
        """Filled, right and bottom not included. Nothing when it has no area."""
        if round(right) > round(left) and round(bottom) > round(top):
            self._draw.rectangle((round(left), round(top), round(right) - 1, round(bottom) - 1), fill=colour)

    def pill(self, x: float, y: float, text: str, size: int, colour: str) -> float:
        """White text in a rounded field whose left end is `x`. Returns its right end."""
        half, right = size * 0.85, x + text_width(text, size) + size * 1.5
        middle = y - size * 0.36
        self.path([(x + half, middle), (right - half, middle)], colour, 2 * half)
        self.dot(x + half, middle, half, colour)
        self.dot(right - half, middle, half, colour)
        self.text((x + right) / 2, y, text, size, PAPER, "m")
        return right

    def dot(self, x: float, y: float, radius: float, colour: str) -> None:
        """A disc."""
        corners = [(x - radius, y - radius), (x + radius, y + radius)]
        corner, mask, inner = _mask(corners)
        ImageDraw.Draw(mask).ellipse(inner, fill=255)
        self.image.paste(colour, corner, mask.reduce(_SMOOTH))

    def ring(self, x: float, y: float, radius: float, colour: str, inside: str = PAPER, width: float = 1.6) -> None:
        """A circle, filled with `inside`."""
        self.dot(x, y, radius, colour)
        self.dot(x, y, radius - width, inside)

    def polygon(self, points: Sequence[Point], colour: str, opacity: float = 1.0) -> None:
        """Filled; `opacity`: 0 to 1."""
        corner, mask, inner = _mask(points)
        ImageDraw.Draw(mask).polygon(inner, fill=round(255 * opacity))
        self.image.paste(colour, corner, mask.reduce(_SMOOTH))

    def path(self, points: Sequence[Point], colour: str, width: float) -> None:
        """A line through the points."""
        corner, mask, inner = _mask(points, round(width))
        ImageDraw.Draw(mask).line(inner, fill=255, width=max(1, round(width * _SMOOTH)), joint="curve")
        self.image.paste(colour, corner, mask.reduce(_SMOOTH))

    def row(
        self, y: float, label: str, cells: Iterable[tuple[float, str]], size: int = 14, left: float = MARGIN
    ) -> None:
        """A table's row of baseline y under a hairline: its label, and texts centred at their x."""
        self.rectangle(left, y - 16, RIGHT, y - 15, HAIR)
        self.text(left, y, label, 14, QUIET)
        for x, text in cells:
            self.text(x, y, text, size, INK, "m")

    def photograph(self, image: Image.Image | None, left: float, top: float, width: float, height: float) -> None:
        """In the middle of a grey field unless it nearly fills it; None: the field says that there is no face."""
        slack = (width, height) if image is None else (width - image.width, height - image.height)
        if max(slack) > 24:
            self.rectangle(left, top, left + width, top + height, EMPTY)
            left, top = left + slack[0] / 2, top + slack[1] / 2
        if image is not None:
            self.image.paste(image, (round(left), round(top)))
        else:
            size = 16 if width >= 150 else 12
            self.text(left, top + size / 3, "no face to show", size, QUIET, "m")


def _mask(points: Sequence[Point], margin: int = 0) -> tuple[tuple[int, int], Image.Image, list[Point]]:
    """Where an enlarged, empty mask around the points belongs, the mask, and the points on it."""
    left, top = (int(min(axis)) - 1 - margin for axis in zip(*points, strict=True))
    right, bottom = (int(max(axis)) + 2 + margin for axis in zip(*points, strict=True))
    mask = Image.new("L", ((right - left) * _SMOOTH, (bottom - top) * _SMOOTH))
    return (left, top), mask, [((x - left) * _SMOOTH, (y - top) * _SMOOTH) for x, y in points]


def fitted(pixels: "NDArray[np.uint8] | None", width: float, height: float) -> Image.Image | None:
    """A (height, width, 3) RGB picture, as large as the field allows; None stays None."""
    return None if pixels is None else _resized(Image.fromarray(pixels), width, height)[0]


def marked(shown: Shown, width: float, height: float, around: float | None = None) -> Image.Image:
    """A face's picture with its box and landmarks, as large as the field allows.

    `around`: only the face is shown and so much of its surroundings, as a share of its size; None: all there is.
    """
    image = Image.fromarray(shown.pixels)
    left, top, right, bottom = (0, 0, *image.size) if around is None else _surroundings(shown.box, image.size, around)
    image, scale = _resized(image.crop((left, top, right, bottom)), width, height)

    def at(x: float, y: float) -> Point:
        # Held near the picture, whatever the box: what is drawn takes memory by its extent.
        return (
            min(max((x - left) * scale, -9.0), image.width + 9.0),
            min(max((y - top) * scale, -9.0), image.height + 9.0),
        )

    pen, strong = Page(image), min(1.0, max(0.45, min(width, height) / 220))
    x, y, face_width, face_height = shown.box
    corners = [(x, y), (x + face_width, y), (x + face_width, y + face_height), (x, y + face_height)]
    outline = [at(*corner) for corner in (*corners, *corners[:2])]
    for colour, line in ((BLUE, 4.0), (PAPER, 1.8)):  # to be seen on pale and on dark
        pen.path(outline, colour, line * strong)
    for point in shown.points:
        pen.ring(*at(float(point[0]), float(point[1])), 4.0 * strong, PAPER, BLUE, 1.4 * strong)
    return image


def _surroundings(box: Box, size: tuple[int, int], around: float) -> tuple[int, int, int, int]:
    """A square around the box, cut at the picture's edges; all of the picture when nothing would be left."""
    x, y, width, height = box
    half = max(width, height) * (0.5 + around)
    left, top = max(0, int(x + width / 2 - half)), max(0, int(y + height / 2 - half))
    right, bottom = min(size[0], round(x + width / 2 + half)), min(size[1], round(y + height / 2 + half))
    return (left, top, right, bottom) if left < right and top < bottom else (0, 0, *size)


def _resized(image: Image.Image, width: float, height: float) -> tuple[Image.Image, float]:
    scale = min(width / image.width, height / image.height, _ENLARGED)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.resize(size, Image.Resampling.BICUBIC), scale
