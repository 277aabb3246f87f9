"""The demo's files: real formats, the same each time, invented data with right check digits."""

from pathlib import Path

import av
import pytest

from deployments.demo_card import machine_readable_lines
from deployments.demo_media import DemoMedia, build_demo_media
from tasks.errors import MediaRefused
from tasks.media import check_id_image, check_selfie_video, read_id_image, sample_frames
from tasks.settings import Settings


def test_the_upload_service_would_take_them(demo_media: DemoMedia, media_settings: Settings) -> None:
    for card in (demo_media.genuine_card, demo_media.impostor_card, demo_media.faceless_card):
        check_id_image(card, media_settings)
        assert read_id_image(card, media_settings).size == (1280, 900)
    check_selfie_video(demo_media.selfie_video, media_settings)
    assert len(list(sample_frames(demo_media.selfie_video, 10, media_settings))) == 10
    with pytest.raises(MediaRefused) as caught:
        check_selfie_video(demo_media.not_a_video, media_settings)
    assert caught.value.code == "NOT_A_VIDEO"


def test_the_video_is_what_phones_record(demo_media: DemoMedia) -> None:
    with av.open(str(demo_media.selfie_video)) as container:
        (stream,) = container.streams.video
        assert stream.codec_context is not None
        assert (stream.codec_context.name, stream.frames) == ("h264", 60)
        assert (stream.codec_context.width, stream.codec_context.height) == (640, 480)


def test_the_same_files_each_time(demo_media: DemoMedia, media_settings: Settings, tmp_path: Path) -> None:
    again = build_demo_media(tmp_path, media_settings)
    for name, path in vars(demo_media).items():
        assert path.read_bytes() == getattr(again, name).read_bytes()


def test_machine_readable_lines() -> None:
    """Check digits by hand: SPE000001 -> 28*7 + 25*3 + 14*1 + 0 + 0 + 0 + 0 + 0 + 1*1 = 286."""
    first, second = machine_readable_lines("SPE000001")
    assert len(first) == len(second) == 36
    assert second.startswith("SPE0000016UTO8001014<4912310<<<<<<<")
