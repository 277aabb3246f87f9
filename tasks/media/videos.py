"""Selfie videos: MP4/MOV or WebM/Matroska, demuxed and decoded by FFmpeg (PyAV) inside fixed bounds.

FFmpeg is told which demuxer and which codecs to use, so that no playlist inside a file leads it to another file or to
the network: of the two demuxers, Matroska's opens nothing, and MP4's follows data references only where its option
`enable_drefs` is set, which is off unless asked for.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import cast

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
from tasks.media.sizes import read_head, wrapping
from tasks.settings import Settings

CODECS = "h264,hevc,vp8,vp9,libdav1d,av1,mpeg4,h263,mjpeg,libvpx,libvpx-vp9"
"""FFmpeg's decoders that phones and browsers need. The hundreds of others stay closed to strangers' bytes."""

MOST_FRAMES_PER_SECOND = 240
"""Slow motion of phones. A container may lie about time, not about how many frames it holds."""

MOST_PIXELS_DECODED = 4_000_000_000
"""Of one video: a minute of 1080p at 30 frames a second, or 16 seconds of 4K, where no key frames shorten the way."""

MOST_PACKETS_PER_SECOND = 2_000
"""All streams together: sound in 2.5 ms packets, slow motion and a phone's sensor tracks fit in."""

_PATIENCE_SECONDS = (2.0, 30.0)
"""How long one call of FFmpeg may read: a stranger's file, for which sound ones take hundredths of a second, and a file
that was checked before, which a busy worker must not refuse. It ends what no count of ours foresees."""


def packets_of(
    container: av.container.InputContainer, stream: VideoStream, path: Path, settings: Settings, *, whole: bool
) -> Iterator[Packet[VideoStream]]:
    """The video's packets that have a time and a content, in the order of decoding, inside all bounds."""
    budget, size, count, corrupt = _most_packets(settings), 0, 0, False
    begin, end = math.inf, 0.0
    for packet in container.demux():
        budget -= 1
        size += packet.size
        if budget < 0 or size > 2 * path.stat().st_size + 1024:
            raise _overfull()
        if packet.stream_index != stream.index or packet.size == 0 or (packet.pts is None and packet.dts is None):
            continue
        count += 1
        corrupt = corrupt or packet.is_corrupt
        found = cast("Packet[VideoStream]", packet)
        begin = min(begin, moment_of(found))
        end = max(end, moment_of(found) + seconds_of(found, found.duration))
        _refuse_too_long(count, end - begin, settings)
        yield found
    if count == 0:
        raise MediaRefused("VIDEO_WITHOUT_FRAMES", "The selfie video has no frames. Record it again.")
    # The index has fewer frames than the file where an edit list leaves some out that lead to no other.
    if whole and (corrupt or count < min(stream.frames, len(stream.index_entries))):
        raise _truncated()


def moment_of(packet: Packet[VideoStream]) -> float:
    """When the packet's frame is shown, in seconds of the container's clock."""
    return seconds_of(packet, packet.dts if packet.pts is None else packet.pts)


def seconds_of(packet: Packet[VideoStream], ticks: int | None) -> float:
    """A time in the packet's own unit, as seconds; None is 0."""
    return float((ticks or 0) * packet.time_base)


@contextmanager
def open_video(
    path: Path, settings: Settings, *, checked: bool = True
) -> Iterator[tuple[av.container.InputContainer, VideoStream]]:
    head = read_head(path, "selfie video", settings.max_selfie_video_bytes)
    kind = container_of(head)
    if kind is None:
        says = wrapping(head) or "The selfie video is not an MP4, MOV, WebM or Matroska file. Upload one."
        raise MediaRefused("NOT_A_VIDEO", says)
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
            stream = max(_moving_pictures(container), key=_mainness, default=None)
            if stream is None:
                raise MediaRefused("VIDEO_WITHOUT_FRAMES", "The selfie video has sound only. Record it again.")
            if not _supported(stream):
                raise MediaRefused(
                    "VIDEO_UNREADABLE",
                    f"The selfie video's codec ({_codec_name(stream)}) is not supported. "
                    "Use H.264, H.265, VP8, VP9 or AV1.",
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


def decode(
    packets: Iterable[Packet[VideoStream]], stream: VideoStream, settings: Settings, *, drained: bool = False
) -> Iterator[VideoFrame]:
    """Decode; packets that do not decode are passed over, and sizes are looked at again in each frame.

    `drained`: leave the decoder as new, so that it takes packets again that do not follow on these.
    """
    most, pixels = int(settings.max_selfie_video_seconds * MOST_FRAMES_PER_SECOND), 0
    for packet in chain(packets, [None]):  # the decoder gives its last frames when it is told that no more comes
        try:
            frames = stream.codec_context.decode(packet)
        except FFmpegError:
            continue
        for frame in frames:
            most -= 1
            pixels += frame.width * frame.height
            _refuse_too_many_pixels(frame.width, frame.height, settings)
            if most < 0 or pixels > MOST_PIXELS_DECODED:
                return
            if not frame.is_corrupt:
                yield frame
    if drained:
        stream.codec_context.flush_buffers()


def _moving_pictures(container: av.container.InputContainer) -> list[VideoStream]:
    """Its video tracks. A cover picture is none."""
    return [video for video in container.streams.video if not video.disposition & Disposition.attached_pic]


def _mainness(stream: VideoStream) -> tuple[bool, bool, bool, int]:
    """What makes a track the one that players show: the largest says most. Of equals it is the first.

    Phones write others beside it, some before it: a preview of one frame, a depth map that is not enabled.
    """
    context = stream.codec_context
    area = 0 if context is None else context.width * context.height
    return _supported(stream), stream.frames != 1, bool(stream.disposition & Disposition.default), area


def _supported(stream: VideoStream) -> bool:
    return stream.codec_context is not None and stream.codec_context.name in CODECS.split(",")


def _codec_name(stream: VideoStream) -> str:
    return "unknown" if stream.codec_context is None else stream.codec_context.name


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
