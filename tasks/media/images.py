"""ID images: JPEG, PNG or WebP, decoded by Pillow, with bounds that hold before anything is decoded."""

import io
import mmap
import re
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image, ImageStat, UnidentifiedImageError

from tasks.errors import MediaRefused
from tasks.media import png
from tasks.media.sizes import read_head, wrapping
from tasks.settings import Settings

FORMATS = ("JPEG", "PNG", "WEBP")
"""The only decoders that Pillow may choose from."""

# Every exception that Pillow's three decoders raise on damaged input.
_BROKEN = (OSError, SyntaxError, ValueError, EOFError, KeyError, TypeError, IndexError, struct.error, OverflowError)

MOST_JPEG_PIXELS = 260_000_000
"""Of a baseline JPEG, which is decoded at a half, a quarter or an eighth of its size: 1.5 s for the 200 megapixels of
today's largest phone cameras. A progressive one is held whole in memory while it is decoded."""

_ENOUGH_PIXELS = 32_000_000  # for a card that fills a tenth of the picture: larger ones are made smaller at once

_MOST_SCANS = 100  # of a progressive JPEG, each of which may walk all pixels; cameras write about 10
_MOST_PARTS = 20_000  # segments of a JPEG: Pillow takes microseconds for each, and they may have 4 bytes
# What libjpeg takes for a marker between segments and inside pixels, but for those that restart a scan.
_MARKER = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")

# Pillow's own bound is on the pixels that a file claims, whatever it takes to decode them. Ours is looked at in its
# place, before anything is decoded.
Image.MAX_IMAGE_PIXELS = None

_NOTHING_TO_SEE = 8
"""Mean of the alpha, of 255, below which a picture over white is white."""

_ORIENTATION_TAG = 0x0112
# EXIF 2.32, tag Orientation: what undoes each value.
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def check_id_image(path: Path, settings: Settings) -> None:
    """Refuse a file that cannot be an ID image; a full decode finds truncation.

    Raises MediaRefused: EMPTY, TOO_LARGE, NOT_AN_IMAGE, IMAGE_TOO_MANY_PIXELS, IMAGE_UNREADABLE, TRUNCATED.
    """
    with _quiet(), _decoded(path, settings):
        pass


def read_id_image(path: Path, settings: Settings) -> Image.Image:
    """The picture, upright by its EXIF orientation, in mode RGB; transparent parts become white.

    A picture of more than `_ENOUGH_PIXELS` is given at a half, a quarter or an eighth of its size. Raises MediaRefused
    as `check_id_image` does.
    """
    with _quiet(), _decoded(path, settings) as image:
        factor = _factor(image.size)
        return _upright(_to_rgb(image if factor == 1 else image.reduce(factor)))


@contextmanager
def _quiet() -> Iterator[None]:
    """Pillow warns of damaged metadata; the pixels are sound, so it must not matter where warnings are errors.

    Filters are shared between threads: the worst that two at a time do is to leave this one in place.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
        yield


def _decoded(path: Path, settings: Settings) -> Image.Image:
    head = read_head(path, "ID image", settings.max_id_image_bytes)
    kind = _kind(head)
    if kind is None:
        says = wrapping(head) or "The ID image is not a JPEG, PNG or WebP file. Upload one of these."
        raise MediaRefused("NOT_AN_IMAGE", says)
    if kind == "WEBP" and int.from_bytes(head[4:8], "little") + 8 > path.stat().st_size:
        raise _truncated(kind)  # Pillow has no word of its own for this
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        if (kind == "JPEG" and _jpeg_is_laborious(data)) or (kind == "PNG" and png.is_laborious(data)):
            raise MediaRefused(
                "IMAGE_UNREADABLE", f"The ID image is a {kind} file of too many parts. Take or export it again."
            )
        mended = png.without_damaged_extras(data) if kind == "PNG" else None
    try:
        image = Image.open(path if mended is None else io.BytesIO(mended), formats=FORMATS)
    except UnidentifiedImageError as exc:
        raise _unreadable(kind) from exc
    except _BROKEN as exc:
        raise _unreadable(kind) from exc
    try:
        baseline = kind == "JPEG" and not image.info.get("progressive")
        most = max(MOST_JPEG_PIXELS, settings.max_id_image_pixels) if baseline else settings.max_id_image_pixels
        if image.width * image.height > most:
            raise _too_many_pixels(most, image.size)
        # A JPEG of several pictures (MPO, which many phones write) is not animated: its first is the photograph.
        if kind != "JPEG" and getattr(image, "is_animated", False):
            raise MediaRefused("IMAGE_UNREADABLE", "The ID image is animated. Upload a single picture.")
        if baseline and (factor := _factor(image.size)) > 1:
            image.draft(None, (image.width // factor, image.height // factor))
        image.load()
    except _BROKEN as exc:
        image.close()
        if "truncated" in str(exc).lower():
            raise _truncated(kind) from exc
        raise _unreadable(kind) from exc
    except MediaRefused:
        image.close()
        raise
    return image


def _kind(head: bytes) -> str | None:
    if head.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if head.startswith(b"RIFF") and head[8:12] == b"WEBP":
        return "WEBP"
    return None


def _jpeg_is_laborious(data: mmap.mmap) -> bool:
    """Whether there are too many scans or segments (ITU-T T.81, annex B)."""
    at, scans, parts = 2, 0, 0
    while (found := _MARKER.search(data, at)) is not None:
        marker = found.group()[1]
        # Before the pixels, Pillow goes through filling bytes one by one.
        parts += 1 if scans else 1 + found.start() - at
        scans += marker == 0xDA
        if scans > _MOST_SCANS or parts > _MOST_PARTS:
            return True
        if marker == 0xD9:
            return False  # what follows are other pictures
        at = found.end()
        if marker >= 0xC0 and marker != 0xD8:  # the others have no length
            at += max(2, int.from_bytes(data[at : at + 2], "big"))
    return False


def _factor(size: tuple[int, int]) -> int:
    """By how much a picture is made smaller, each way: 1, 2, 4 or 8."""
    return next((by for by in (1, 2, 4) if size[0] * size[1] <= _ENOUGH_PIXELS * by**2), 8)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        # Pillow would clip these to white instead of scaling them. 16 bits a pixel hold what a sensor has, often fewer.
        whole = image.convert("I")
        brightest = whole.getextrema()[1]
        bits = next((bits for bits in (8, 10, 12, 14) if brightest < 1 << bits), 16)  # type: ignore[operator]
        return whole.point(lambda value: value * (255 / ((1 << bits) - 1))).convert("L").convert("RGB")
    if image.mode in {"RGBA", "LA", "PA"} or "transparency" in image.info:
        over = image.convert("RGBA")
        alpha = ImageStat.Stat(over.getchannel("A"))
        if alpha.extrema[0][0] == alpha.extrema[0][1] or alpha.mean[0] < _NOTHING_TO_SEE:
            return over.convert("RGB")  # the alpha says nothing, or hides a picture that somebody meant to send
        return Image.alpha_composite(Image.new("RGBA", over.size, "white"), over).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")  # the latter copies


def _upright(image: Image.Image) -> Image.Image:
    try:
        orientation = image.getexif().get(_ORIENTATION_TAG, 1)
    except _BROKEN:
        return image  # damaged metadata, sound pixels
    undo = _UPRIGHT.get(orientation) if isinstance(orientation, int) else None
    return image if undo is None else image.transpose(undo)


def _unreadable(kind: str) -> MediaRefused:
    return MediaRefused("IMAGE_UNREADABLE", f"The ID image is a damaged {kind} file. Take or export it again.")


def _truncated(kind: str) -> MediaRefused:
    return MediaRefused("TRUNCATED", f"The ID image is a {kind} file whose end is missing. Upload it again.")


def _too_many_pixels(most: int, size: tuple[int, int]) -> MediaRefused:
    return MediaRefused(
        "IMAGE_TOO_MANY_PIXELS",
        f"The ID image has {size[0]} x {size[1]} pixels and {most:,} are allowed. Upload a smaller one.",
    )
