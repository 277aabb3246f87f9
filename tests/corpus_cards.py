"""Odd ID images, each with the reason of the decision that it gives beside a sound selfie video."""

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from deployments.demo_card import draw_card
from tasks.contracts import Reason
from tests.media_corpus import Case, Footage

MATCH, UNREADABLE, NO_FACE = Reason.SIMILARITY_SUFFICIENT, Reason.ID_IMAGE_UNREADABLE, Reason.NO_FACE_IN_ID_IMAGE

Builder = Callable[[Footage, Path], object]
Change = Callable[[Image.Image], Image.Image]

# EXIF 2.32, tag Orientation: how the pixels lie of a picture that is to be shown upright.
_STORED = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    """The image as a file's content."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png_chunk(name: bytes, data: bytes) -> bytes:
    """A PNG chunk with its sum."""
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def _card(kind: str, change: Change = lambda card: card, **options: object) -> Builder:
    """The genuine card, changed, as a file of that kind."""
    return lambda footage, path: path.write_bytes(encoded(change(footage.card), kind, **options))


def _plain(mode: str, size: tuple[int, int], kind: str = "PNG") -> Builder:
    """A white picture."""
    return lambda footage, path: path.write_bytes(encoded(Image.new(mode, size, "white"), kind))


def _turned_by_exif(orientation: int) -> Builder:
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = _STORED.get(orientation)
    return _card("JPEG", lambda card: card if stored is None else card.transpose(stored), exif=exif.tobytes())


def _turned(angle: int) -> Builder:
    return _card("JPEG", lambda card: card.rotate(angle, expand=True))


def _scaled(width: int) -> Change:
    return lambda card: card.resize((width, width * card.height // card.width), Image.Resampling.BILINEAR)


def _scan(width: int) -> Change:
    """A scanner's whole bed, 12 megapixels, with the card's photograph on it in that width."""

    def scan(card: Image.Image) -> Image.Image:
        bed = Image.new("RGB", (4000, 3000), "#f4f4f2")
        bed.paste(_scaled(width)(card), (1700, 2100))
        return bed

    return scan


def _light(times: float, plus: int) -> Change:
    """As a camera records it that takes too little or too much light: values beyond its range are lost."""
    return lambda card: card.point(lambda value: max(0, min(255, int(value * times + plus))))


def _blurred(radius: float) -> Change:
    return lambda card: card.filter(ImageFilter.GaussianBlur(radius))


def _transparent(card: Image.Image) -> Image.Image:
    """The table around the card is transparent, with black below."""
    mask = Image.new("L", card.size, 0)
    ImageDraw.Draw(mask).rectangle((150, 150, card.width - 150, card.height - 150), fill=255)
    image = Image.composite(card, Image.new("RGB", card.size), mask)
    image.putalpha(mask)
    return image


def _hidden(card: Image.Image) -> Image.Image:
    """All of it is transparent, with the card below."""
    image = card.copy()
    image.putalpha(0)
    return image


def _sixteen_bits(card: Image.Image, times: int = 257) -> Image.Image:
    return Image.fromarray(np.asarray(card.convert("L")).astype(np.uint16) * times)


def _animated(kind: str) -> Builder:
    more = {"save_all": True, "append_images": [Image.new("RGB", (640, 450))], "duration": 100}
    return _card(kind, _scaled(640), **more)


def _drawn(who: int | None) -> Builder:
    """Another card: with one of the portraits, or none."""

    def draw(footage: Footage, path: Path) -> None:
        path.write_bytes(draw_card(None if who is None else footage.portraits[who], serial=7))

    return draw


def _two_faces(footage: Footage, path: Path) -> None:
    both = Image.new("RGB", (700, 400), "white")
    for index, portrait in enumerate(footage.portraits):
        both.paste(portrait.resize((300, 380)), (20 + 360 * index, 10))
    both.save(path, "PNG")


def _bomb(footage: Footage, path: Path) -> None:
    """3.6 gigapixels in a thousand bytes."""
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    chunks = (
        png_chunk(b"IHDR", header) + png_chunk(b"IDAT", zlib.compress(bytes(1_000_000), 9)) + png_chunk(b"IEND", b"")
    )
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunks)


CARDS = [
    *(Case(f"exif-{orientation}", _turned_by_exif(orientation), MATCH) for orientation in range(1, 9)),
    *(Case(f"turned-{angle}", _turned(angle), MATCH) for angle in (90, 180, 270)),
    Case("mirrored", _card("JPEG", lambda card: card.transpose(Image.Transpose.FLIP_LEFT_RIGHT)), MATCH),
    # Modes and formats
    Case("cmyk", _card("JPEG", lambda card: card.convert("CMYK"), quality=90), MATCH),
    Case("grey", _card("JPEG", lambda card: card.convert("L")), MATCH),
    Case("sixteen-bit-grey", _card("PNG", _sixteen_bits, compress_level=1), MATCH),
    Case("twelve-bits-of-sixteen", _card("PNG", lambda card: _sixteen_bits(card, 16), compress_level=1), MATCH),
    Case("all-transparent", _card("PNG", _hidden, compress_level=1), MATCH),
    Case("transparent", _card("PNG", _transparent, compress_level=1), MATCH),
    Case("palette", _card("PNG", lambda card: card.quantize(64)), MATCH),
    Case("fax", _card("PNG", lambda card: card.convert("1", dither=Image.Dither.NONE)), NO_FACE),
    Case("progressive", _card("JPEG", progressive=True), MATCH),
    Case("saved-badly", _card("JPEG", quality=8), MATCH),
    Case("webp", _card("WEBP", method=0), MATCH),
    Case("two-pictures-in-one", _card("MPO", save_all=True, append_images=[Image.new("RGB", (64, 64))]), MATCH),
    Case("animated-gif", _animated("GIF"), UNREADABLE, "NOT_AN_IMAGE", "JPEG, PNG or WebP"),
    Case("animated-png", _animated("PNG"), UNREADABLE, "IMAGE_UNREADABLE", "animated"),
    Case("animated-webp", _animated("WEBP"), UNREADABLE, "IMAGE_UNREADABLE", "animated"),
    Case("text", lambda footage, path: path.write_text("No picture.\n"), UNREADABLE, "NOT_AN_IMAGE"),
    Case("empty", lambda footage, path: path.touch(), UNREADABLE, "EMPTY"),
    Case(
        "video", lambda footage, path: path.write_bytes(footage.selfie_video.read_bytes()), UNREADABLE, "NOT_AN_IMAGE"
    ),
    # Sizes
    Case("tiny", _card("PNG", _scaled(100)), NO_FACE),
    Case("small", _card("PNG", _scaled(240)), Reason.ID_IMAGE_FACE_TOO_SMALL, says="16 is needed"),
    Case("scan-portrait-100", _card("JPEG", _scan(457)), MATCH),
    Case("scan-portrait-48", _card("JPEG", _scan(220)), NO_FACE),
    Case("huge", _card("JPEG", _scaled(8430), quality=60), MATCH),
    Case("sensor-of-108-megapixels", _card("JPEG", _scaled(12_380), quality=60), MATCH),
    Case("huge-blank", _plain("L", (7000, 7000), "JPEG"), NO_FACE),
    Case("too-many-pixels", _plain("L", (8000, 6501)), UNREADABLE, "IMAGE_TOO_MANY_PIXELS", "8000 x 6501"),
    Case("bomb", _bomb, UNREADABLE, "IMAGE_TOO_MANY_PIXELS"),
    Case("one-pixel", _plain("RGB", (1, 1)), NO_FACE),
    Case("ribbon", _plain("RGB", (40_000, 3)), NO_FACE),
    Case("post", _plain("RGB", (3, 40_000)), NO_FACE),
    # What it shows
    Case("blank", _plain("RGB", (1280, 900)), NO_FACE),
    Case("no-portrait", _drawn(None), NO_FACE),
    Case("somebody-else", _drawn(1), Reason.SIMILARITY_INSUFFICIENT),
    Case("two-faces", _two_faces, Reason.SEVERAL_FACES_IN_ID_IMAGE),
    Case("blurred", _card("JPEG", _blurred(12)), Reason.ID_IMAGE_FACE_TOO_BLURRED, says="Sharpness"),
    Case("blurred-beyond-a-face", _card("JPEG", _blurred(25)), NO_FACE),
    Case("dark", _card("PNG", _light(0.4, -30)), Reason.ID_IMAGE_FACE_TOO_DARK, says="Brightness"),
    Case("black", _card("JPEG", _light(0.05, 0)), NO_FACE),
    Case("overexposed", _card("PNG", _light(0.5, 190)), Reason.ID_IMAGE_FACE_TOO_BRIGHT, says="Brightness"),
]
