"""ID images: JPEG, PNG or WebP, decoded by Pillow, with bounds that hold before anything is decoded."""

import mmap
import re
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from tasks.errors import MediaRefused
from tasks.media.sizes import read_head
from tasks.settings import Settings

FORMATS = ("JPEG", "PNG", "WEBP")
"""The only decoders that Pillow may choose from."""

# Every exception that Pillow's three decoders raise on damaged input.
_BROKEN = (OSError, SyntaxError, ValueError, EOFError, KeyError, TypeError, IndexError, struct.error, OverflowError)

_MOST_SCANS = 100  # of a progressive JPEG, each of which may walk all pixels; cameras write about 10
_MOST_PARTS = (
    20_000  # segments of a JPEG, chunks of a PNG: Pillow takes microseconds for each, and they may have 4 bytes
)
# What libjpeg takes for a marker between segments and inside pixels, but for those that restart a scan.
_MARKER = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")

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

    Raises MediaRefused as `check_id_image` does.
    """
    with _quiet(), _decoded(path, settings) as image:
        return _upright(_to_rgb(image))


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
        raise MediaRefused("NOT_AN_IMAGE", "The ID image is not a JPEG, PNG or WebP file. Upload one of these.")
    if kind == "WEBP" and int.from_bytes(head[4:8], "little") + 8 > path.stat().st_size:
        raise _truncated(kind)  # Pillow has no word of its own for this
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        if (kind == "JPEG" and _jpeg_is_laborious(data)) or (kind == "PNG" and _png_is_laborious(data)):
            raise MediaRefused(
                "IMAGE_UNREADABLE", f"The ID image is a {kind} file of too many parts. Take or export it again."
            )
    try:
        image = Image.open(path, formats=FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as exc:
        raise _too_many_pixels(settings) from exc
    except UnidentifiedImageError as exc:
        raise _unreadable(kind) from exc
    except _BROKEN as exc:
        raise _unreadable(kind) from exc
    try:
        if image.width * image.height > settings.max_id_image_pixels:
            raise _too_many_pixels(settings, image.size)
        # A JPEG of several pictures (MPO, which many phones write) is not animated: its first is the photograph.
        if kind != "JPEG" and getattr(image, "is_animated", False):
            raise MediaRefused("IMAGE_UNREADABLE", "The ID image is animated. Upload a single picture.")
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


def _png_is_laborious(data: mmap.mmap) -> bool:
    """Whether there are too many chunks, or colour profiles, each of which Pillow inflates to as much as 1 MB."""
    at, profiles = 8, 0
    for _ in range(_MOST_PARTS):
        name = data[at + 4 : at + 8]
        profiles += name == b"iCCP"
        if profiles > 1:  # no more are allowed by the PNG specification
            return True
        if len(name) < 4 or name == b"IEND":
            return False
        at += 12 + int.from_bytes(data[at : at + 4], "big")
    return True


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        # 16 bits a pixel: Pillow would clip these to white instead of scaling them.
        return image.convert("I").point(lambda value: value * (1 / 257)).convert("L").convert("RGB")
    if image.mode in {"RGBA", "LA", "PA"} or "transparency" in image.info:
        over = image.convert("RGBA")
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


def _too_many_pixels(settings: Settings, size: tuple[int, int] | None = None) -> MediaRefused:
    found = "too many" if size is None else f"{size[0]} x {size[1]}"
    return MediaRefused(
        "IMAGE_TOO_MANY_PIXELS",
        f"The ID image has {found} pixels and {settings.max_id_image_pixels:,} are allowed. Upload a smaller one.",
    )
