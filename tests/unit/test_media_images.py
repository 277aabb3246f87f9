"""ID images: what is accepted, each code, and the decoder's modes."""

import io
import struct
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps
from PIL.PngImagePlugin import PngInfo

from tasks.errors import MediaRefused
from tasks.media import check_id_image, read_id_image
from tasks.settings import Settings

SETTINGS = Settings()


def photograph(size: tuple[int, int] = (320, 200)) -> Image.Image:
    """Noise on a gradient: it compresses badly, so that a cut falls into pixels."""
    noise = np.random.default_rng(7).integers(0, 60, (size[1], size[0], 3))
    ramp = np.linspace(0, 190, size[0])[None, :, None]
    return Image.fromarray((noise + ramp).astype(np.uint8))


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def refusal(path: Path, content: bytes, settings: Settings = SETTINGS) -> str:
    path.write_bytes(content)
    with pytest.raises(MediaRefused) as caught:
        check_id_image(path, settings)
    assert str(caught.value)[-1] == "."
    return caught.value.code


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "MPO"])
def test_kind_is_told_by_content_not_by_name(tmp_path: Path, kind: str) -> None:
    more: dict[str, object] = {"save_all": True, "append_images": [photograph()]} if kind == "MPO" else {}
    path = tmp_path / "card.mp4"
    path.write_bytes(encoded(photograph(), kind, **more))
    check_id_image(path, SETTINGS)
    assert read_id_image(path, SETTINGS).size == (320, 200)


@pytest.mark.parametrize(
    "content",
    [
        b"plain text",
        encoded(photograph(), "GIF"),
        encoded(photograph(), "BMP"),
        encoded(photograph(), "TIFF"),
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n",
        b'<svg xmlns="http://www.w3.org/2000/svg"/>',
        b"\x00\x00\x00\x18ftypheic\x00\x00\x00\x00",
    ],
    ids=["text", "gif", "bmp", "tiff", "eps", "svg", "heic"],
)
def test_other_kinds_are_refused(tmp_path: Path, content: bytes) -> None:
    assert refusal(tmp_path / "card.jpg", content) == "NOT_AN_IMAGE"


def test_empty_and_too_large(tmp_path: Path) -> None:
    assert refusal(tmp_path / "card.jpg", b"") == "EMPTY"
    small = Settings(max_id_image_bytes=1024)
    assert refusal(tmp_path / "card.jpg", encoded(photograph(), "PNG"), small) == "TOO_LARGE"


@pytest.mark.parametrize("share", [0.2, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "progressive"])
def test_truncated(tmp_path: Path, kind: str, share: float) -> None:
    options: dict[str, object] = {"quality": 95}
    if kind == "progressive":
        kind, options["progressive"] = "JPEG", True
    content = encoded(photograph(), kind, **options)
    assert refusal(tmp_path / "card", content[: int(len(content) * share)]) == "TRUNCATED"


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_animated_is_refused(tmp_path: Path, kind: str) -> None:
    others = [photograph().transpose(Image.Transpose.FLIP_LEFT_RIGHT)]
    content = encoded(photograph(), kind, save_all=True, append_images=others)
    assert refusal(tmp_path / "card", content) == "IMAGE_UNREADABLE"


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_signature_alone_is_unreadable(tmp_path: Path, kind: str) -> None:
    content = encoded(photograph(), kind)[:12] + bytes(4000)
    if kind == "WEBP":
        content = content[:4] + (3000).to_bytes(4, "little") + content[8:]
    assert refusal(tmp_path / "card", content) == "IMAGE_UNREADABLE"


@pytest.mark.parametrize("side", [8_000, 12_000, 60_000])
def test_decompression_bomb_is_refused_before_decoding(tmp_path: Path, side: int) -> None:
    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes(1_000_000), 9)
    content = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    begin = time.perf_counter()
    assert refusal(tmp_path / "card.png", content) == "IMAGE_TOO_MANY_PIXELS"
    assert time.perf_counter() - begin < 1


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_undone(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "card.png"
    path.write_bytes(encoded(photograph(), "PNG", exif=exif.tobytes()))
    with Image.open(path) as image:
        expected = ImageOps.exif_transpose(image)
    assert np.array_equal(np.asarray(read_id_image(path, SETTINGS)), np.asarray(expected))


def test_broken_exif_does_not_matter(tmp_path: Path) -> None:
    path = tmp_path / "card.jpg"
    path.write_bytes(encoded(photograph(), "JPEG", exif=b"Exif\x00\x00MM\x00*\xff\xff\xff\xff" + bytes(20)))
    assert read_id_image(path, SETTINGS).size == (320, 200)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "I;16", "YCbCr"])
def test_every_mode_becomes_rgb(tmp_path: Path, mode: str) -> None:
    grey = Image.new("L", (40, 30), 102)  # a grey that the web palette has
    if mode == "I;16":
        image = Image.fromarray(np.full((30, 40), 102 * 257, np.uint16))
    else:
        image = grey.convert("RGB").convert(mode) if mode != "1" else Image.new("1", (40, 30), 1)
    path = tmp_path / "card"
    path.write_bytes(encoded(image, "JPEG" if mode in {"CMYK", "YCbCr"} else "PNG"))
    read = read_id_image(path, SETTINGS)
    assert read.mode == "RGB"
    expected = 255 if mode == "1" else 102
    assert np.abs(np.asarray(read).astype(int) - expected).max() <= 3


def test_transparent_parts_become_white(tmp_path: Path) -> None:
    path = tmp_path / "card.png"
    image = Image.new("RGBA", (10, 10), (0, 0, 0, 0))
    image.paste((10, 20, 30, 255), (0, 0, 5, 10))
    path.write_bytes(encoded(image, "PNG"))
    read = np.asarray(read_id_image(path, SETTINGS))
    assert (read[:, :5] == (10, 20, 30)).all()
    assert (read[:, 5:] == 255).all()


@pytest.mark.parametrize("alpha", [0, 1, 128, 254, "nearly nothing"])
def test_an_alpha_that_hides_all_or_nothing_is_passed_over(tmp_path: Path, alpha: int | str) -> None:
    """Scanners and editors write such files, and people cannot see why they would be refused."""
    picture = photograph()
    mask = Image.new("L", picture.size, alpha if isinstance(alpha, int) else 0)
    if isinstance(alpha, str):
        mask.paste(255, (0, 0, 20, 20))
    transparent = picture.copy()
    transparent.putalpha(mask)
    path = tmp_path / "card.png"
    path.write_bytes(encoded(transparent, "PNG"))
    assert np.array_equal(np.asarray(read_id_image(path, SETTINGS)), np.asarray(picture))


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
def test_fewer_bits_in_sixteen_are_stretched(tmp_path: Path, bits: int) -> None:
    grey = np.asarray(photograph().convert("L"), np.uint16)
    path = tmp_path / "card.png"
    path.write_bytes(encoded(Image.fromarray(np.uint16(grey.astype(float) * ((1 << bits) - 1) / 255)), "PNG"))
    read = np.asarray(read_id_image(path, SETTINGS))[..., 0]
    assert np.abs(read.astype(int) - grey).max() <= 1


def spoilt(content: bytes, name: bytes) -> bytes:
    """A PNG in which the sum of one chunk is wrong."""
    at = content.index(name)
    end = at + 4 + int.from_bytes(content[at - 4 : at], "big")
    return content[:end] + bytes([content[end] ^ 1]) + content[end + 1 :]


@pytest.mark.parametrize("name", [b"pHYs", b"tEXt", b"iCCP", b"eXIf"])
def test_a_damaged_chunk_that_the_pixels_do_not_need(tmp_path: Path, name: bytes) -> None:
    text, exif = PngInfo(), Image.Exif()
    text.add_text("Comment", "a card")
    exif[0x0112] = 6
    content = encoded(photograph(), "PNG", dpi=(300, 300), pnginfo=text, icc_profile=bytes(200), exif=exif.tobytes())
    path = tmp_path / "card.png"
    path.write_bytes(content)
    whole = np.asarray(read_id_image(path, SETTINGS))
    path.write_bytes(spoilt(content, name))
    check_id_image(path, SETTINGS)
    read = np.asarray(read_id_image(path, SETTINGS))
    assert np.array_equal(read, np.rot90(whole) if name == b"eXIf" else whole)


@pytest.mark.parametrize("name", [b"IHDR", b"PLTE"])
def test_a_damaged_chunk_that_the_pixels_need(tmp_path: Path, name: bytes) -> None:
    content = encoded(photograph().quantize(16), "PNG")
    assert refusal(tmp_path / "card.png", spoilt(content, name)) == "IMAGE_UNREADABLE"


@pytest.mark.parametrize(
    ("size", "read"),
    [((8160, 6144), (4080, 3072)), ((12_000, 9_000), (6_000, 4_500)), ((16_320, 12_240), (4_080, 3_060))],
    ids=["50", "108", "200"],
)
def test_pictures_of_large_sensors_are_read_smaller(
    tmp_path: Path, size: tuple[int, int], read: tuple[int, int]
) -> None:
    path = tmp_path / "card.jpg"
    photograph((400, 300)).resize(size, Image.Resampling.NEAREST).save(path, "JPEG", quality=50)
    check_id_image(path, SETTINGS)
    found = read_id_image(path, SETTINGS)
    assert found.size == read
    small = np.asarray(found.resize((400, 300), Image.Resampling.BOX)).astype(int)
    assert np.abs(small - np.asarray(photograph((400, 300)))).mean() < 8


def test_a_large_png_is_read_smaller(tmp_path: Path) -> None:
    path = tmp_path / "card.png"
    photograph((400, 300)).resize((8160, 6144), Image.Resampling.NEAREST).save(path, "PNG", compress_level=1)
    assert read_id_image(path, SETTINGS).size == (4080, 3072)


@pytest.mark.parametrize(("size", "progressive"), [((8200, 6400), True), ((20_000, 13_100), False)])
def test_jpegs_that_would_take_too_much(tmp_path: Path, size: tuple[int, int], progressive: bool) -> None:
    """A progressive one is decoded whole, however small it is wanted."""
    content = encoded(Image.new("L", size, 90), "JPEG", quality=20, progressive=progressive)
    assert refusal(tmp_path / "card.jpg", content) == "IMAGE_TOO_MANY_PIXELS"
