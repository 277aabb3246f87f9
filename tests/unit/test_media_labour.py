"""Small files that would cost a decoder seconds of time or gigabytes of memory."""

import io
import struct
import time
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from av.video.codeccontext import VideoCodecContext
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from PIL import Image

from tasks.errors import MediaRefused
from tasks.media import check_id_image, check_selfie_video, read_id_image, sample_frames, videos
from tasks.settings import Settings
from tests.media_fixtures import write_video

SETTINGS = Settings()


@contextmanager
def within(seconds: float) -> Iterator[None]:
    begin = time.perf_counter()
    yield
    assert time.perf_counter() - begin < seconds


def refusal(check: Callable[[Path, Settings], None], path: Path, settings: Settings = SETTINGS) -> str:
    with pytest.raises(MediaRefused) as caught:
        check(path, settings)
    assert str(caught.value)[-1] == "."
    return caught.value.code


# Videos


def box(name: bytes, content: bytes = b"") -> bytes:
    return struct.pack(">I4s", 8 + len(content), name) + content


def with_more_index(path: Path, more: bytes) -> Path:
    """An MP4 whose last box, the index, has further content."""
    content = write_video(path).read_bytes()
    at = content.index(b"moov") - 4
    path.write_bytes(content[:at] + box(b"moov", content[at + 8 :] + more))
    return path


def element(name: bytes, content: bytes) -> bytes:
    """An EBML element (RFC 8794) with a length of eight bytes."""
    return name + b"\x01" + len(content).to_bytes(7, "big") + content


def with_more_elements(path: Path, more: bytes) -> Path:
    """A Matroska file with further elements before its first cluster."""
    content = write_video(path).read_bytes()
    begin, cluster = content.index(b"\x18\x53\x80\x67"), content.index(b"\x1f\x43\xb6\x75")
    segment = content[begin + 12 : cluster] + more + content[cluster:]
    path.write_bytes(content[:begin] + element(b"\x18\x53\x80\x67", segment))
    return path


def test_overlapping_tables_are_counted_together(tmp_path: Path) -> None:
    """Each table's entries are the tables after it: the work was quadratic."""
    path = with_more_index(tmp_path / "selfie.mp4", struct.pack(">4sIII", b"stts", 0, 121_000, 0) * 16_384)
    with within(2):
        assert refusal(check_selfie_video, path) == "VIDEO_UNREADABLE"


def test_tables_together_claim_too_many_samples(tmp_path: Path) -> None:
    path = with_more_index(tmp_path / "selfie.mp4", box(b"stts", struct.pack(">IIII", 0, 1, 61_000, 1)) * 2)
    assert refusal(check_selfie_video, path) == "VIDEO_UNREADABLE"


def test_edits_are_counted_together(tmp_path: Path) -> None:
    path = with_more_index(tmp_path / "selfie.mp4", box(b"elst", struct.pack(">II", 0, 60)) * 2)
    assert refusal(check_selfie_video, path) == "VIDEO_UNREADABLE"


def test_too_many_boxes(tmp_path: Path) -> None:
    path = write_video(tmp_path / "selfie.mp4")
    path.write_bytes(path.read_bytes() + box(b"free") * 100_001)
    assert refusal(check_selfie_video, path) == "VIDEO_UNREADABLE"


def test_too_large_an_index(tmp_path: Path) -> None:
    path = with_more_index(tmp_path / "selfie.mp4", box(b"free") * (512 * 1024))
    assert refusal(check_selfie_video, path) == "VIDEO_UNREADABLE"


def test_padding_is_no_index(tmp_path: Path) -> None:
    path = write_video(tmp_path / "selfie.mp4")
    path.write_bytes(path.read_bytes() + box(b"free", bytes(5 * 1024 * 1024)))
    check_selfie_video(path, SETTINGS)


def test_patience_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """FFmpeg compares each key of QuickTime's metadata to all others."""
    names = range(25_000)
    keys = b"".join(box(b"mdta", b"%08x" % name) for name in names)
    values = b"".join(
        struct.pack(">II", 25, name + 1) + box(b"data", struct.pack(">II", 1, 0) + b"x") for name in names
    )
    handler = box(b"hdlr", struct.pack(">II4s13x", 0, 0, b"mdta"))
    metadata = handler + box(b"keys", struct.pack(">II", 0, len(names)) + keys) + box(b"ilst", values)
    path = with_more_index(tmp_path / "selfie.mp4", box(b"meta", bytes(4) + metadata))
    monkeypatch.setattr(videos, "_PATIENCE_SECONDS", (0.2, 30.0))
    with pytest.raises(MediaRefused, match="too long to read"):
        check_selfie_video(path, SETTINGS)


def test_too_many_tags(tmp_path: Path) -> None:
    tags = b"".join(
        element(b"\x67\xc8", element(b"\x45\xa3", b"%08x" % name) + element(b"\x44\x87", b"x")) for name in range(2_000)
    )
    path = with_more_elements(tmp_path / "selfie.mkv", element(b"\x12\x54\xc3\x67", element(b"\x73\x73", tags)))
    assert refusal(check_selfie_video, path) == "VIDEO_UNREADABLE"


def test_a_matroska_index_is_not_sorted(tmp_path: Path) -> None:
    def cue(moment: int) -> bytes:
        number = struct.pack(">I", moment)
        return b"\xbb\x91\xb3\x84" + number + b"\xb7\x89\xf7\x81\x01\xf1\x84" + number

    cues = b"".join(cue(moment) for moment in range(160_000, 0, -1))
    path = with_more_elements(tmp_path / "selfie.mkv", element(b"\x1c\x53\xbb\x6b", cues))
    with within(2):
        check_selfie_video(path, SETTINGS)


def write_growing(path: Path, small: tuple[int, int], large: tuple[int, int]) -> Path:
    """Motion JPEG of twenty small pictures, then ten large ones: each packet has its own size."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mjpeg", rate=30)
        assert isinstance(stream, VideoStream)
        stream.width, stream.height, stream.pix_fmt = *small, "yuvj420p"
        for begin, count, (width, height) in ((0, 20, small), (20, 10, large)):
            encoder = av.CodecContext.create("mjpeg", "w")
            assert isinstance(encoder, VideoCodecContext)
            encoder.width, encoder.height, encoder.pix_fmt = width, height, "yuvj420p"
            encoder.time_base = Fraction(1, 30)
            for index in range(begin, begin + count):
                frame = VideoFrame.from_ndarray(np.full((height, width, 3), 99, np.uint8), format="rgb24")
                frame.pts, frame.time_base = index, Fraction(1, 30)
                for packet in encoder.encode(frame.reformat(format="yuvj420p")):
                    packet.stream = stream
                    packet.pts, packet.time_base = index, Fraction(1, 30)
                    container.mux(packet)
    return path


def test_frames_that_grow_are_refused(tmp_path: Path) -> None:
    path = write_growing(tmp_path / "selfie.mkv", (160, 120), (192, 144))
    assert len(list(sample_frames(path, 10, SETTINGS))) == 10
    with pytest.raises(MediaRefused) as caught:
        list(sample_frames(path, 10, Settings(max_selfie_video_pixels=160 * 120)))
    assert caught.value.code == "VIDEO_TOO_MANY_PIXELS"


def test_frames_that_grow_beyond_memory_are_not_decoded(tmp_path: Path) -> None:
    path = write_growing(tmp_path / "selfie.mkv", (160, 120), (1280, 960))
    samples = list(sample_frames(path, 10, Settings(max_selfie_video_pixels=160 * 120)))
    assert {sample.pixels.shape for sample in samples} == {(120, 160, 3)}


def write_two_streams(path: Path, codec: str, size: tuple[int, int]) -> Path:
    """A sound H.264 stream and, beside it, a second video stream."""
    with av.open(str(path), "w") as container:
        for name, (width, height) in (("libx264", (160, 120)), (codec, size)):
            stream = container.add_stream(name, rate=30)
            assert isinstance(stream, VideoStream)
            stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for stream in container.streams.video:
            for index in range(5):
                frame = VideoFrame(stream.width, stream.height, stream.pix_fmt or "")
                frame.pts, frame.time_base = index, Fraction(1, 30)
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
    return path


@pytest.mark.parametrize(("codec", "size"), [("ffv1", (160, 120)), ("libvpx-vp9", (1280, 960))])
def test_opening_decodes_nothing_else(tmp_path: Path, codec: str, size: tuple[int, int]) -> None:
    """FFmpeg looks into all streams as it opens a file; a stream that it did not decode has no pixel format."""
    path = write_two_streams(tmp_path / "selfie.mkv", codec, size)
    with videos.open_video(path, Settings(max_selfie_video_pixels=160 * 120)) as (container, stream):
        assert stream.codec_context.name == "h264"
        assert container.streams.video[1].codec_context.pix_fmt is None


# Images


def jpeg(*, progressive: bool = False) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (64, 64), 99).save(buffer, "JPEG", progressive=progressive)
    return buffer.getvalue()


def chunk(name: bytes, content: bytes = b"") -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def png(more: bytes) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (16, 16), "teal").save(buffer, "PNG")
    return buffer.getvalue()[:33] + more + buffer.getvalue()[33:]  # after the signature and IHDR


PROFILE = chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(1000)))


def repeated_scan(scans: int) -> bytes:
    content = jpeg(progressive=True)
    begin = content.rindex(b"\xff\xc4", 0, content.rindex(b"\xff\xda"))  # with its Huffman table
    scans -= content.count(b"\xff\xda")
    return content[:-2] + content[begin:-2] * scans + content[-2:]


@pytest.mark.parametrize(
    ("content", "accepted"),
    [
        (jpeg(progressive=True), True),
        (repeated_scan(100), True),
        (repeated_scan(101), False),
        # Two bytes that begin a scan do not where they stand in a segment, or behind the picture.
        (jpeg()[:2] + b"\xff\xe5\x01\x92" + b"\xff\xda" * 200 + jpeg()[2:], True),
        (jpeg() + b"\xff\xda" * 200, True),
        (jpeg()[:2] + b"\xff\xfe\x00\x02" * 1_000 + jpeg()[2:], True),
        (jpeg()[:2] + b"\xff\xfe\x00\x02" * 20_000 + jpeg()[2:], False),
        (jpeg()[:2] + b"\xff" * 20_000 + jpeg()[2:], False),
        (png(chunk(b"tESt") * 1_000), True),
        (png(chunk(b"tESt") * 20_000), False),
        (png(PROFILE), True),
        (png(PROFILE * 2), False),
    ],
    ids=[
        *("progressive", "scans", "too-many-scans", "no-scan", "behind"),
        *("segments", "too-many-segments", "filling", "chunks", "too-many-chunks", "profile", "profiles"),
    ],
)
def test_parts_of_an_image(tmp_path: Path, content: bytes, accepted: bool) -> None:
    path = tmp_path / "card"
    path.write_bytes(content)
    if accepted:
        check_id_image(path, SETTINGS)
    else:
        with pytest.raises(MediaRefused, match="too many parts") as caught:
            check_id_image(path, SETTINGS)
        assert caught.value.code == "IMAGE_UNREADABLE"


@pytest.mark.parametrize("name", [b"iCCP", b"zTXt"])
def test_an_inflated_chunk_is_refused(tmp_path: Path, name: bytes) -> None:
    path = tmp_path / "card"
    path.write_bytes(png(chunk(name, b"a\0\0" + zlib.compress(bytes(100_000_000), 9))))
    with within(1):
        assert refusal(check_id_image, path) == "IMAGE_UNREADABLE"


@pytest.mark.parametrize(
    "segment",
    [
        b"\xff\xe1\x00\x24Exif\x00\x00MM\x00*\xff\xff\xff\xff" + bytes(20),
        b"\xff\xe2\x00\x1cMPF\x00MM\x00*\x00\x00\x00\x08" + bytes(14),
    ],
    ids=["exif", "mpo"],
)
def test_damaged_metadata_does_not_matter(tmp_path: Path, segment: bytes) -> None:
    path = tmp_path / "card"
    path.write_bytes(jpeg()[:2] + segment + jpeg()[2:])
    with pytest.warns(UserWarning, match="EXIF|MPO"), Image.open(path) as image:
        image.getexif()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_id_image(path, SETTINGS)
        assert read_id_image(path, SETTINGS).size == (64, 64)
