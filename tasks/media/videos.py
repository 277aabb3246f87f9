"""Selfie videos: MP4/MOV or WebM/Matroska, demuxed and decoded by FFmpeg (PyAV) inside fixed bounds.

FFmpeg is told which demuxer and which codecs to use, so that no playlist inside a file leads it to another file or to
the network: of the two demuxers, Matroska's opens nothing, and MP4's follows data references only where its option
`enable_drefs` is set, which is off unless asked for.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, cast

import av
import av.container
from av.error import ExitError, FFmpegError
from av.packet import Packet
from av.stream import Disposition
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from tasks.errors import MediaRefused
from tasks.media.containers import container_of, has_too_many_tags, is_cut_off
from tasks.media.mp4_index import claims_more_than
from tasks.media.sizes import read_head
from tasks.settings import Settings

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

CODECS = "h264,hevc,vp8,vp9,libdav1d,av1,mpeg4,h263,mjpeg,libvpx,libvpx-vp9"
"""FFmpeg's decoders that phones and browsers need. The hundreds of others stay closed to strangers' bytes."""

MOST_FRAMES_PER_SECOND = 240
"""Slow motion of phones. A container may lie about time, not about how many frames it holds."""

MOST_PACKETS_PER_SECOND = 2_000
"""All streams together: sound in 2.5 ms packets, slow motion and a phone's sensor tracks fit in."""

_PACKETS_UNTIL_A_FRAME = 64  # more than any codec's reordering delay


_PATIENCE_SECONDS = (2.0, 30.0)
"""How long one call of FFmpeg may read: a stranger's file, for which sound ones take hundredths of a second, and a file
that was checked before, which a busy worker must not refuse. It ends what no count of ours foresees."""


@dataclass(frozen=True)
class Timeline:
    """When a video's frames are shown: seconds in ascending order, as its packets say. Nothing was decoded."""

    times: tuple[float, ...]
    end: float


def check_selfie_video(path: Path, settings: Settings) -> None:
    """Refuse a file that cannot be a selfie video: walks all packets, decodes one frame.

    Raises MediaRefused: EMPTY, TOO_LARGE, NOT_A_VIDEO, VIDEO_UNREADABLE, VIDEO_WITHOUT_FRAMES, VIDEO_TOO_LONG,
    VIDEO_TOO_MANY_PIXELS, TRUNCATED.
    """
    read_timeline(path, settings)
    with _opened(path, settings, checked=False) as (container, stream):
        packets = islice(container.demux(stream), _PACKETS_UNTIL_A_FRAME)
        if next(_frames(packets, settings), None) is None:
            raise MediaRefused(
                "VIDEO_UNREADABLE", f"The selfie video's first {stream.name} frame does not decode. Record it again."
            )


def sample_frames(path: Path, count: int, settings: Settings) -> Iterator[tuple[float, NDArray[np.uint8]]]:
    """Yield up to `count` frames, evenly spaced over the time that exists: (seconds, (height, width, 3) BGR).

    Frames stand upright by the video's rotation. One frame is held at a time, and none is given twice.
    Raises MediaRefused as `check_selfie_video` does, TRUNCATED excepted: what is there is used.
    """
    timeline = read_timeline(path, settings, whole=False)
    begin, span = timeline.times[0], timeline.end - timeline.times[0]
    wanted = [begin + span * (index + 0.5) / count for index in range(count)]
    # The frame on show at each wanted moment is the last one that began before it.
    starts = sorted({timeline.times[bisect_right(timeline.times, moment) - 1] for moment in wanted})
    given = 0
    with _opened(path, settings) as (container, stream):
        for frame in _frames(container.demux(stream), settings):
            if given == len(starts):
                return
            if frame.pts is None or frame.time < starts[given] - 1e-6:
                continue
            while given < len(starts) and starts[given] <= frame.time + 1e-6:
                given += 1
            yield max(0.0, frame.time - begin), _upright_bgr(frame)
    if given == 0:
        raise MediaRefused("VIDEO_UNREADABLE", "No frame of the selfie video decodes. Record it again.")


def read_timeline(path: Path, settings: Settings, *, whole: bool = True) -> Timeline:
    """Walk all packets without decoding one. `whole`: a video whose end is missing is refused.

    Raises MediaRefused as `check_selfie_video` does.
    """
    with _opened(path, settings, checked=not whole) as (container, stream):
        budget, size = _most_packets(settings), 0
        times: list[float] = []
        begin, end, corrupt = math.inf, 0.0, False
        for packet in container.demux():
            budget -= 1
            size += packet.size
            if budget < 0 or size > 2 * path.stat().st_size + 1024:
                raise _overfull()
            if packet.stream_index != stream.index or packet.size == 0:
                continue
            moment = packet.pts if packet.pts is not None else packet.dts
            if moment is None:
                continue
            corrupt = corrupt or packet.is_corrupt
            times.append(float(moment * packet.time_base))
            begin = min(begin, times[-1])
            end = max(end, times[-1] + float((packet.duration or 0) * packet.time_base))
            _refuse_too_long(len(times), end - begin, settings)
        if not times:
            raise MediaRefused("VIDEO_WITHOUT_FRAMES", "The selfie video has no frames. Record it again.")
        if whole and (corrupt or len(times) < stream.frames):
            raise _truncated()
        return Timeline(tuple(sorted(times)), end)


@contextmanager
def _opened(
    path: Path, settings: Settings, *, checked: bool = True
) -> Iterator[tuple[av.container.InputContainer, VideoStream]]:
    head = read_head(path, "selfie video", settings.max_selfie_video_bytes)
    kind = container_of(head)
    if kind is None:
        raise MediaRefused("NOT_A_VIDEO", "The selfie video is not an MP4, MOV, WebM or Matroska file. Upload one.")
    if not checked and is_cut_off(path, kind):
        raise _truncated()
    if claims_more_than(path, _most_packets(settings)) if kind == "mov" else has_too_many_tags(path):
        raise _overfull()
    # FFmpeg counts what it pads, so its own bound is wider: it is there for memory and time, the exact one is ours.
    max_pixels = str(2 * settings.max_selfie_video_pixels + 65_536)
    try:
        with av.open(
            f"file:{path.absolute()}",  # with its protocol, so that no name is taken for an address
            format=kind,
            # The last two reach the decoders with which FFmpeg looks into every stream as it opens a file. A Matroska
            # index, which is for seeking, would take a time that is quadratic in its length.
            options={"fflags": "ignidx", "codec_whitelist": CODECS, "max_pixels": max_pixels},
            metadata_errors="replace",
            timeout=_PATIENCE_SECONDS[checked],
        ) as container:
            videos = (video for video in container.streams.video if not video.disposition & Disposition.attached_pic)
            stream = next(videos, None)  # a cover picture is no video
            if stream is None:
                raise MediaRefused("VIDEO_WITHOUT_FRAMES", "The selfie video has sound only. Record it again.")
            if stream.codec_context is None or stream.codec_context.name not in CODECS.split(","):
                raise MediaRefused(
                    "VIDEO_UNREADABLE", "The selfie video's codec is not supported. Use H.264, H.265, VP8, VP9 or AV1."
                )
            _refuse_too_many_pixels(stream.codec_context.width, stream.codec_context.height, settings)
            stream.codec_context.options = {"max_pixels": max_pixels}
            yield container, stream
    except ExitError as exc:  # out of patience
        raise MediaRefused(
            "VIDEO_UNREADABLE", "The selfie video takes too long to read. Record or export it again."
        ) from exc
    except FFmpegError as exc:
        raise MediaRefused(
            "VIDEO_UNREADABLE", f"The selfie video cannot be read ({exc.strerror}). Record or export it again."
        ) from exc


def _frames(packets: Iterable[Packet[VideoStream]], settings: Settings) -> Iterator[VideoFrame]:
    """Decode; packets that do not decode are passed over, and sizes are looked at again in each frame."""
    most = int(settings.max_selfie_video_seconds * MOST_FRAMES_PER_SECOND)
    for packet in packets:
        try:
            frames = packet.decode()
        except FFmpegError:
            continue
        for frame in frames:
            most -= 1
            _refuse_too_many_pixels(frame.width, frame.height, settings)
            if most < 0:
                return
            if not frame.is_corrupt:
                yield frame


def _upright_bgr(frame: VideoFrame) -> NDArray[np.uint8]:
    import numpy as np

    pixels = cast("NDArray[np.uint8]", frame.to_ndarray(format="bgr24"))
    quarter_turns = round(frame.rotation / 90) % 4  # counter-clockwise, as FFmpeg's display matrix has it
    return np.ascontiguousarray(np.rot90(pixels, quarter_turns))


def _refuse_too_long(frames: int, seconds: float, settings: Settings) -> None:
    most = settings.max_selfie_video_seconds
    if seconds > most or frames > most * MOST_FRAMES_PER_SECOND:
        raise MediaRefused(
            "VIDEO_TOO_LONG",
            f"The selfie video has more than {most:g} seconds or {most * MOST_FRAMES_PER_SECOND:g} frames. "
            "Record a shorter one.",
        )


def _refuse_too_many_pixels(width: int, height: int, settings: Settings) -> None:
    if width * height > settings.max_selfie_video_pixels:
        raise MediaRefused(
            "VIDEO_TOO_MANY_PIXELS",
            f"The selfie video has frames of {width} x {height} pixels and {settings.max_selfie_video_pixels:,} are "
            "allowed. Record it in a lower resolution.",
        )


def _most_packets(settings: Settings) -> int:
    return int(settings.max_selfie_video_seconds * MOST_PACKETS_PER_SECOND) + 1000


def _overfull() -> MediaRefused:
    return MediaRefused(
        "VIDEO_UNREADABLE", "The selfie video's index claims more than such a file can have. Record it again."
    )


def _truncated() -> MediaRefused:
    return MediaRefused("TRUNCATED", "The end of the selfie video is missing. Upload it again.")
