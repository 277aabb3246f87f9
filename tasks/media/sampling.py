"""Which frames of a selfie video are looked at, so that as little as possible is decoded."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

from av.video.frame import VideoFrame

from tasks.errors import MediaRefused
from tasks.media.videos import decode, moment_of, open_video, packets_of, seconds_of
from tasks.settings import Settings

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

LONGEST_SIDE = 1920
"""Frames are handed on at no more than this many pixels a side: a face that fills a tenth of it is still larger than
any recogniser's input. It bounds the memory of a frame, whatever the video."""

_ALL_KEYS = {"mjpeg"}  # codecs in which every frame stands alone
_FEW_ON_THE_WAY = 15  # frames decoded for each wanted one
_TICK = 1e-6
_REORDERING_SECONDS = 0.5


@dataclass(frozen=True)
class VideoSample:
    """One upright frame of a video.

    `pixels`: (height, width, 3) RGB, longest side at most LONGEST_SIDE. `scale`: the file's pixels for one of these, 1
    or more. `time_seconds`: since the first frame. `video_seconds`: the whole video's length.
    """

    time_seconds: float
    pixels: NDArray[np.uint8]
    scale: float
    video_seconds: float


def sample_frames(path: Path, count: int, settings: Settings) -> Iterator[VideoSample]:
    """Yield up to `count` frames spread over the time that exists, one from each of as many equal parts.

    Only what these frames need is decoded. One frame is held at a time, and none is given twice; the video's packets,
    no larger than the file, are held as well.
    Raises MediaRefused as `check_selfie_video` does, TRUNCATED excepted: what is there is used.
    """
    with open_video(path, settings) as (container, stream):
        packets = list(packets_of(container, stream, path, settings, whole=False))
        moments = [moment_of(packet) for packet in packets]
        begin = min(moments)
        end = max(at + seconds_of(packet, packet.duration) for at, packet in zip(moments, packets, strict=True))
        keys = [index for index, packet in enumerate(packets) if packet.is_keyframe]
        if len(keys) == len(packets) and stream.name not in _ALL_KEYS:
            keys = []  # a container that marks every frame says nothing
        wanted = plan(moments, keys, end, count)
        needed = list(needed_for(wanted, moments, keys))
        # Threads over frames hold frames back; they only pay where many are decoded in a row.
        stream.thread_type = "SLICE" if len(needed) == len(wanted) else "AUTO"
        if len(needed) > _FEW_ON_THE_WAY * len(wanted):
            # Frames that no other is made from are passed over; a wanted one among them has a close neighbour.
            stream.codec_context.skip_frame = "NONREF"
        left, tick = sorted(wanted), packets[0].time_base
        found = False
        for frame in decode((packets[index] for index in needed), stream, settings):
            if not left:
                return
            if frame.pts is None or (moment := float(frame.pts * tick)) < left[0] - _TICK:
                continue
            left = [later for later in left if later > moment + _TICK]
            found = True
            yield _sample(frame, max(0.0, moment - begin), end - begin)
    if not found:
        raise MediaRefused(
            "VIDEO_UNREADABLE", f"No frame of the selfie video ({stream.name}) decodes. Record it again."
        )


def plan(moments: Sequence[float], keys: Sequence[int], end: float, count: int) -> dict[float, int]:
    """Which frames to look at: for each its moment, and the packet from which to decode up to it.

    The time is cut into `count` equal parts. A part's key frame stands for it, the one next to its middle; a part
    without one is seen at its middle. `moments`: seconds of the packets in the order of decoding, `keys`: those among
    them that need no other.
    """
    shown = sorted(moments)
    step = (end - shown[0]) / count
    chosen: dict[float, int] = {}
    for part in range(count):
        begin, middle = shown[0] + step * part, shown[0] + step * (part + 0.5)
        inside = [key for key in keys if begin <= moments[key] < begin + step]
        if inside:
            key = min(inside, key=lambda index: abs(moments[index] - middle))
            chosen[moments[key]] = key
        else:
            on_show = shown[max(0, bisect_right(shown, middle) - 1)]
            chosen.setdefault(on_show, max((key for key in keys if moments[key] <= on_show), default=0))
    return chosen


def needed_for(wanted: Mapping[float, int], moments: Sequence[float], keys: Sequence[int]) -> Iterator[int]:
    """Indices of the packets to decode for what `plan` gave, in order."""
    until = dict.fromkeys(wanted.values(), -math.inf)
    for moment, first in wanted.items():
        until[first] = max(until[first], moment)
    for first in sorted(until):
        yield first
        if until[first] <= moments[first]:
            continue
        following = bisect_right(keys, first)
        for index in range(first + 1, keys[following] if following < len(keys) else len(moments)):
            yield index
            # Frames are decoded in another order than shown; a few more bring the last wanted one out.
            if moments[index] > until[first] + _REORDERING_SECONDS:
                break


def _sample(frame: VideoFrame, moment: float, video_seconds: float) -> VideoSample:
    import numpy as np

    scale = max(1.0, max(frame.width, frame.height) / LONGEST_SIDE)
    size = (max(1, round(frame.width / scale)), max(1, round(frame.height / scale)))
    shrunk = frame.reformat(*size, format="rgb24", interpolation="AREA" if scale > 1 else "BILINEAR")
    quarter_turns = round(frame.rotation / 90) % 4  # counter-clockwise, as FFmpeg's display matrix has it
    pixels = np.ascontiguousarray(np.rot90(cast("NDArray[np.uint8]", shrunk.to_ndarray()), quarter_turns))
    return VideoSample(moment, pixels, scale, video_seconds)
