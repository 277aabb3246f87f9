"""The corpus of odd media: what its files are drawn from, how one is written, what each is expected to give."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from numpy.typing import NDArray
from PIL import Image

from deployments.demo_media import build_demo_media, portraits, samples
from tasks.contracts import Reason
from tasks.settings import Settings

Picture = NDArray[np.uint8]

SIZE = (320, 240)
RATE = 10
_ENCODER = {"libx264": {"preset": "veryfast", "threads": "1"}, "libx265": {"x265-params": "log-level=none"}}


class Case(NamedTuple):
    """One odd file. `build` writes it; `gives` is the decision's reason when the other file is sound.

    `refused`: the code with which the upload service refuses it, None when it takes it. `says`: a word that the
    reason's detail has for people.
    """

    name: str
    build: Callable[["Footage", Path], object]
    gives: Reason
    refused: str | None = None
    says: str = ""


@dataclass(frozen=True)
class Footage:
    """Real recordings, decoded once. The man's video comes after the frame that his card shows."""

    settings: Settings
    folder: Path

    @cached_property
    def frames(self) -> list[Picture]:
        """The last 60 frames of the man who talks, of SIZE."""
        with av.open(str(samples(self.settings)[0])) as container:
            found = [
                frame.reformat(*SIZE, format="rgb24", interpolation="BICUBIC") for frame in container.decode(video=0)
            ]
        return [np.asarray(frame.to_ndarray(), np.uint8) for frame in found[60:]]

    @cached_property
    def clip(self) -> list[Picture]:
        """Every third of them: two seconds at RATE."""
        return self.frames[::3]

    @cached_property
    def portraits(self) -> tuple[Image.Image, Image.Image]:
        """The man's, as his card shows it, and a woman's."""
        return portraits(self.settings)

    @cached_property
    def woman(self) -> Picture:
        """Her portrait, 160 pixels wide."""
        return np.asarray(self.portraits[1].resize((160, 206)))

    @cached_property
    def genuine_card(self) -> Path:
        """The demo's, as a file."""
        return build_demo_media(self.folder, self.settings).genuine_card

    @cached_property
    def card(self) -> Image.Image:
        """The photograph of the genuine card: 1280 x 900, 70 pixels between the portrait's eyes."""
        with Image.open(self.genuine_card) as image:
            return image.convert("RGB")

    @cached_property
    def selfie_video(self) -> Path:
        """A sound video of the man, with as many frames as are used."""
        return write_clip(self.folder / "selfie.mp4", self.clip[::4])


def write_clip(
    path: Path,
    pictures: Sequence[Picture],
    *,
    kind: str | None = None,
    rate: int = RATE,
    times: Sequence[float] | None = None,
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    container_options: dict[str, str] | None = None,
) -> Path:
    """A video of (height, width, 3) RGB pictures, `rate` a second or at `times`, in seconds.

    `kind`: FFmpeg's name of the container; None: the path's ending tells.
    """
    unit = Fraction(1, rate) if times is None else Fraction(1, 1000)
    moments = range(len(pictures)) if times is None else [round(moment * 1000) for moment in times]
    with av.open(str(path), "w", format=kind, options=container_options or {}) as container:
        stream = container.add_stream(codec, rate=rate, options=_ENCODER.get(codec, {}))
        assert isinstance(stream, VideoStream)
        stream.height, stream.width = pictures[0].shape[:2]
        stream.pix_fmt = pix_fmt
        stream.codec_context.time_base = unit
        for moment, pixels in zip(moments, pictures, strict=True):
            frame = VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
            frame.pts, frame.time_base = moment, unit
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def resized(picture: Picture, width: int, height: int) -> Picture:
    """The picture in another size."""
    return np.asarray(Image.fromarray(picture).resize((width, height)))


def pasted(background: Picture, picture: Picture, left: int, top: int) -> Picture:
    """A copy of the background with the picture upon it."""
    copy = background.copy()
    copy[top : top + picture.shape[0], left : left + picture.shape[1]] = picture
    return copy
