"""Selfie videos: what is accepted, each code, tricks, and the sampler."""

import struct
import wave
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from tasks.errors import MediaRefused
from tasks.media import check_selfie_video, sample_frames
from tasks.media.sampling import needed_for, plan
from tasks.settings import Settings
from tests.media_fixtures import write_video
from tests.remuxed import hide_beginning, put_before, with_matrix, with_pixel_shape

SETTINGS = Settings()
FRAGMENTED = {"movflags": "frag_keyframe+empty_moov"}
FASTSTART = {"movflags": "+faststart"}


def refusal(path: Path, settings: Settings = SETTINGS) -> str:
    with pytest.raises(MediaRefused) as caught:
        check_selfie_video(path, settings)
    assert str(caught.value)[-1] == "."
    return caught.value.code


@pytest.mark.parametrize(
    ("ending", "codec", "options"),
    [
        ("mp4", "libx264", {}),
        ("mp4", "libx264", FASTSTART),
        ("mp4", "libx264", FRAGMENTED),
        ("mp4", "libx265", {}),
        ("mov", "libx264", {}),
        ("webm", "libvpx", {}),
        ("webm", "libvpx-vp9", {}),
        ("webm", "libsvtav1", {}),
        ("mkv", "libx264", {}),
    ],
)
def test_accepted_and_sampled(tmp_path: Path, ending: str, codec: str, options: dict[str, str]) -> None:
    path = write_video(tmp_path / f"selfie.{ending}", codec=codec, container_options=options)
    path = path.rename(tmp_path / "selfie.jpg")  # kind is told by content, not by name
    check_selfie_video(path, SETTINGS)
    samples = list(sample_frames(path, 5, SETTINGS))
    assert [round(sample.time_seconds, 1) for sample in samples] == [0.0, 0.3, 0.5, 0.7, 0.9]
    squares = [int(sample.pixels[20].sum(axis=1).argmax()) for sample in samples]
    assert squares == sorted(set(squares))
    assert {sample.pixels.shape for sample in samples} == {(120, 160, 3)}


def test_empty_and_too_large(tmp_path: Path) -> None:
    path = tmp_path / "selfie.mp4"
    path.write_bytes(b"")
    assert refusal(path) == "EMPTY"
    assert refusal(write_video(path), Settings(max_selfie_video_bytes=1024)) == "TOO_LARGE"


@pytest.mark.parametrize(
    "content",
    [
        b"This is a text file.\n",
        b"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nother.mp4\n#EXT-X-ENDLIST\n",
        b"ffconcat version 1.0\nfile other.mp4\n",
        b"v=0\no=- 0 0 IN IP4 127.0.0.1\nm=video 9 RTP/AVP 96\n",
        b"\x89PNG\r\n\x1a\n" + bytes(50),
        b"GIF89a" + bytes(50),
        b"\x00\x00\x00\x18ftypheic\x00\x00\x00\x00mif1heic" + bytes(50),
        b"RIFF\x40\x00\x00\x00AVI LIST" + bytes(50),
    ],
    ids=["text", "playlist", "concat", "sdp", "png", "gif", "heic", "avi"],
)
def test_other_kinds_are_refused(tmp_path: Path, content: bytes) -> None:
    write_video(tmp_path / "other.mp4")  # what the tricks point to
    path = tmp_path / "selfie.mp4"
    path.write_bytes(content)
    assert refusal(path) == "NOT_A_VIDEO"


def test_a_name_is_never_taken_for_an_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("concat:other.mp4", "https:selfie.mp4", "subfile,,start,0,end,9,,:x"):
        check_selfie_video(write_video(tmp_path / "made.mp4").rename(name), SETTINGS)


def test_a_playlist_behind_a_signature_opens_no_other_file(tmp_path: Path) -> None:
    write_video(tmp_path / "other.mp4")
    path = tmp_path / "selfie.mp4"
    path.write_bytes(b"\x00\x00\x00\x10ftypisom\x00\x00\x00\x00#EXTM3U\n#EXTINF:1,\nother.mp4\n")
    assert refusal(path) == "VIDEO_UNREADABLE"


@pytest.mark.parametrize(("box", "at"), [(b"stsz", 8), (b"stts", 12), (b"elst", 8)])
def test_an_index_that_claims_millions_of_frames(tmp_path: Path, box: bytes, at: int) -> None:
    """FFmpeg would take gigabytes for it; the file has a few thousand bytes."""
    path = write_video(tmp_path / "selfie.mp4")
    content = bytearray(path.read_bytes())
    found = content.index(box) + at
    content[found : found + 8] = struct.pack(">II", 30_000_000, 30_000_000)
    path.write_bytes(content)
    assert refusal(path) == "VIDEO_UNREADABLE"


def test_an_index_that_is_compressed(tmp_path: Path) -> None:
    path = write_video(tmp_path / "selfie.mp4")
    path.write_bytes(path.read_bytes() + struct.pack(">I4sI4s", 16, b"moov", 8, b"cmov"))
    assert refusal(path) == "VIDEO_UNREADABLE"


def test_sound_only(tmp_path: Path) -> None:
    path = tmp_path / "selfie.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 4096), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    assert refusal(path) == "VIDEO_WITHOUT_FRAMES"


def test_a_sound_file_is_no_video(tmp_path: Path) -> None:
    path = tmp_path / "selfie.mp4"
    with wave.open(str(path), "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(8000)
        sound.writeframes(bytes(16000))
    assert refusal(path) == "NOT_A_VIDEO"


def test_too_long(tmp_path: Path) -> None:
    path = write_video(tmp_path / "selfie.mp4", frames=45)
    check_selfie_video(path, Settings(max_selfie_video_seconds=1.5))
    assert refusal(path, Settings(max_selfie_video_seconds=1.4)) == "VIDEO_TOO_LONG"


def test_too_long_though_the_container_says_otherwise(tmp_path: Path) -> None:
    path = write_video(tmp_path / "selfie.mp4", frames=90)
    content = bytearray(path.read_bytes())
    for box, duration_at in ((b"mvhd", 20), (b"tkhd", 24), (b"mdhd", 20), (b"elst", 12)):
        at = content.index(box) + duration_at
        content[at : at + 4] = struct.pack(">I", 1)
    path.write_bytes(content)
    assert refusal(path, Settings(max_selfie_video_seconds=2)) == "VIDEO_TOO_LONG"


def test_too_many_frames_in_a_short_time(tmp_path: Path) -> None:
    path = write_video(tmp_path / "selfie.mp4", frames=300, rate=1000, size=(32, 32))
    assert refusal(path, Settings(max_selfie_video_seconds=1)) == "VIDEO_TOO_LONG"


def test_too_many_pixels(tmp_path: Path) -> None:
    path = write_video(tmp_path / "selfie.mp4", frames=2)
    assert refusal(path, Settings(max_selfie_video_pixels=19_199)) == "VIDEO_TOO_MANY_PIXELS"
    check_selfie_video(path, Settings(max_selfie_video_pixels=19_200))


def test_codecs_that_no_phone_uses_stay_closed(tmp_path: Path) -> None:
    assert refusal(write_video(tmp_path / "selfie.mkv", codec="ffv1")) == "VIDEO_UNREADABLE"


def test_frames_that_do_not_decode(tmp_path: Path) -> None:
    path = write_video(tmp_path / "selfie.mp4", container_options=FASTSTART)
    content = path.read_bytes()
    at = content.index(b"mdat") + 4
    path.write_bytes(content[:at] + bytes(len(content) - at))
    assert refusal(path) == "VIDEO_UNREADABLE"
    with pytest.raises(MediaRefused, match="No frame"):
        list(sample_frames(path, 5, SETTINGS))


@pytest.mark.parametrize("share", [0.3, 0.6, 0.95])
@pytest.mark.parametrize(
    ("ending", "codec", "options"),
    [
        ("mp4", "libx264", {}),
        ("mp4", "libx264", FASTSTART),
        ("mp4", "libx264", FRAGMENTED),
        ("webm", "libvpx", {}),
        ("mkv", "libx264", {}),
    ],
    ids=["index-last", "index-first", "fragmented", "webm", "mkv"],
)
def test_truncated(tmp_path: Path, ending: str, codec: str, options: dict[str, str], share: float) -> None:
    path = write_video(tmp_path / f"selfie.{ending}", size=(320, 240), codec=codec, container_options=options)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    assert refusal(path) == "TRUNCATED"


def test_frames_missing_behind_an_index_are_noticed(tmp_path: Path) -> None:
    """Cut at the boundary between two boxes, where no box is incomplete."""
    path = write_video(tmp_path / "selfie.mp4", container_options=FASTSTART)
    content = path.read_bytes()
    path.write_bytes(content[: content.index(b"mdat") - 4])
    assert refusal(path) in {"TRUNCATED", "VIDEO_WITHOUT_FRAMES", "VIDEO_UNREADABLE"}


def test_sampler_uses_what_is_there_of_a_truncated_video(tmp_path: Path) -> None:
    path = write_video(tmp_path / "selfie.mp4", frames=60, size=(320, 240), container_options=FASTSTART)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * 0.7)])
    assert 1 <= len(list(sample_frames(path, 10, SETTINGS))) <= 10


def test_fewer_frames_than_asked_for_are_given_once(tmp_path: Path) -> None:
    path = write_video(tmp_path / "selfie.mp4", frames=3)
    assert [round(sample.time_seconds * 30) for sample in sample_frames(path, 10, SETTINGS)] == [0, 1, 2]


@pytest.mark.parametrize(
    ("matrix", "shown"),
    [
        ((1, 0, 0, 1), lambda pixels: pixels),
        ((0, 1, -1, 0), lambda pixels: np.rot90(pixels, -1)),  # as phones write: turned clockwise
        ((-1, 0, 0, -1), lambda pixels: np.rot90(pixels, 2)),
        ((0, -1, 1, 0), np.rot90),
        ((-1, 0, 0, 1), np.fliplr),
        ((1, 0, 0, -1), np.flipud),
        ((0, 1, 1, 0), lambda pixels: pixels.transpose(1, 0, 2)),
        ((0, -1, -1, 0), lambda pixels: np.rot90(pixels, 2).transpose(1, 0, 2)),
    ],
)
def test_frames_are_turned_and_mirrored_as_players_show_them(
    tmp_path: Path, matrix: tuple[int, int, int, int], shown: Callable[[NDArray[np.uint8]], NDArray[np.uint8]]
) -> None:
    path = write_video(tmp_path / "selfie.mp4", frames=2)
    (plain,) = sample_frames(path, 1, SETTINGS)
    (found,) = sample_frames(with_matrix(path, matrix), 1, SETTINGS)
    assert np.array_equal(found.pixels, shown(plain.pixels))


@pytest.mark.parametrize(
    ("shape", "size"),
    [
        ("2/1", (320, 120)),
        ("1/2", (160, 240)),
        ("12/11", (175, 120)),
        ("16/1", (160, 120)),  # damaged
    ],
)
def test_pixels_are_made_square(tmp_path: Path, shape: str, size: tuple[int, int]) -> None:
    path = with_pixel_shape(write_video(tmp_path / "selfie.mp4", frames=2), Fraction(shape))
    (sample,) = sample_frames(path, 1, SETTINGS)
    assert sample.pixels.shape[1::-1] == size


@pytest.mark.parametrize("interval", ["10", "1000"], ids=["key frames", "one key frame"])
@pytest.mark.parametrize("seconds", [0.5, 1.5, 1.8])
def test_what_an_edit_list_hides_is_not_looked_at(tmp_path: Path, seconds: float, interval: str) -> None:
    path = hide_beginning(write_video(tmp_path / "selfie.mp4", frames=60, codec_options={"g": interval}), seconds)
    check_selfie_video(path, SETTINGS)
    samples = list(sample_frames(path, 10, SETTINGS))
    assert len(samples) == min(10, round((2 - seconds) * 30))
    assert samples[0].video_seconds == pytest.approx(2 - seconds, abs=0.02)
    first = int(samples[0].pixels[20].sum(axis=1).argmax())
    assert first == pytest.approx(140 * seconds / 2, abs=10)


def test_an_edit_list_that_hides_everything(tmp_path: Path) -> None:
    path = hide_beginning(write_video(tmp_path / "selfie.mp4"), 5)
    assert refusal(path) in {"VIDEO_WITHOUT_FRAMES", "VIDEO_UNREADABLE"}


@pytest.mark.parametrize(
    ("frames", "side", "enabled"),
    [(1, 80, True), (3, 80, True), (30, 80, True), (30, 160, False), (30, 640, False), (1, 640, True)],
    ids=["preview", "short-preview", "small", "depth", "large-depth", "large-preview"],
)
def test_the_main_track_is_the_one_that_players_show(tmp_path: Path, frames: int, side: int, enabled: bool) -> None:
    path = write_video(tmp_path / "selfie.mov", size=(320, 240))
    other = [np.zeros((side * 3 // 4, side, 3), np.uint8)] * frames
    put_before(path, other, enabled=enabled)
    check_selfie_video(path, SETTINGS)
    samples = list(sample_frames(path, 5, SETTINGS))
    assert {sample.pixels.shape for sample in samples} == {(240, 320, 3)}
    assert len(samples) == 5


SECONDS = [index / 30 for index in range(300)]


def test_key_frames_stand_for_their_parts() -> None:
    keys = list(range(0, 300, 30))
    chosen = plan(SECONDS, keys, 10.0, 5)
    assert [tuple(wanted) for wanted in chosen.values()] == [
        (0, 30),
        (1, 90),
        (2, 150),
        (3, 210),
        (4, 270),
    ]
    assert needed_for(chosen, SECONDS, keys) == [30, 90, 150, 210, 270]


def test_one_key_frame_leads_to_every_part() -> None:
    chosen = plan(SECONDS, [0], 10.0, 5)
    assert list(chosen) == pytest.approx([0, 3, 5, 7, 9])
    assert needed_for(chosen, SECONDS, [0]) == list(range(287))


def test_parts_with_and_without_key_frames() -> None:
    keys = [0, 60]
    chosen = plan(SECONDS[:120], keys, 4.0, 4)
    assert [tuple(wanted) for wanted in chosen.values()] == [(0, 0), (1, 0), (2, 60), (3, 60)]
    assert needed_for(chosen, SECONDS[:120], keys) == [*range(60), *range(60, 120)]


@pytest.mark.parametrize("interval", [5, 1000], ids=["key frames", "one key frame"])
def test_parts_that_are_not_wanted_are_passed_over(tmp_path: Path, interval: int) -> None:
    path = write_video(tmp_path / "selfie.mp4", frames=60, codec_options={"g": str(interval)})
    asked: list[int] = []

    def wanted(part: int) -> bool:
        asked.append(part)
        return part % 2 == 0

    samples = list(sample_frames(path, 6, SETTINGS, wanted))
    assert asked == [0, 1, 2, 3, 4, 5]
    assert [sample.part for sample in samples] == [0, 2, 4]
    assert [round(sample.time_seconds, 1) for sample in samples] == pytest.approx([0.15, 0.85, 1.5], abs=0.2)


def test_frames_are_handed_on_in_a_bounded_size(tmp_path: Path) -> None:
    (sample,) = sample_frames(write_video(tmp_path / "4k.mp4", frames=1, size=(3840, 2160)), 5, SETTINGS)
    assert (sample.pixels.shape, sample.scale) == ((1080, 1920, 3), 2.0)
