"""Media for tests: the demo's files from real recordings, and videos drawn here in any container."""

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from numpy.typing import NDArray

from deployments.demo_media import DemoMedia, build_demo_media
from tasks.faces.models import pull
from tasks.settings import Settings


@pytest.fixture(scope="session")
def media_settings() -> Settings:
    """Settings whose weights and samples are those that `kycflow models pull --samples` placed."""
    return Settings()


@pytest.fixture(scope="session")
def weights(media_settings: Settings) -> list[Path]:
    """The default models' weight files, in place."""
    return pull(media_settings)


@pytest.fixture(scope="session")
def demo_media(tmp_path_factory: pytest.TempPathFactory, media_settings: Settings) -> DemoMedia:
    """The demo's files."""
    return build_demo_media(tmp_path_factory.mktemp("demo"), media_settings)


def write_pictures(
    path: Path,
    pictures: Sequence[NDArray[np.uint8]],
    *,
    rate: int = 30,
    codec: str = "libx264",
    container_options: dict[str, str] | None = None,
    codec_options: dict[str, str] | None = None,
) -> Path:
    """A video of (height, width, 3) RGB pictures; the container is told by the name's ending."""
    with av.open(str(path), "w", options=container_options or {}) as container:
        stream = container.add_stream(codec, rate=rate, options=codec_options or {})
        assert isinstance(stream, VideoStream)
        stream.height, stream.width = pictures[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        for index, pixels in enumerate(pictures):
            frame = VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = index, Fraction(1, rate)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def write_video(
    path: Path,
    *,
    frames: int = 30,
    rate: int = 30,
    size: tuple[int, int] = (160, 120),
    codec: str = "libx264",
    container_options: dict[str, str] | None = None,
    codec_options: dict[str, str] | None = None,
) -> Path:
    """A video of a bright square that moves from left to right."""
    pictures = [np.full((size[1], size[0], 3), 40, np.uint8) for _ in range(frames)]
    for index, pixels in enumerate(pictures):
        left = index * (size[0] - 20) // max(1, frames - 1)
        pixels[10:30, left : left + 20] = 230
    return write_pictures(
        path, pictures, rate=rate, codec=codec, container_options=container_options, codec_options=codec_options
    )
