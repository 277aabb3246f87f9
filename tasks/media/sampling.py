"""Which frames of a selfie video are looked at, so that as little as possible is decoded."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from tasks.errors import MediaRefused
from tasks.media.display import shown
from tasks.media.videos import MOST_PIXELS_DECODED, decode, moment_of, open_video, packets_of, seconds_of
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
    or more. `part`: which part of the time it stands for. `time_seconds`: since the first frame. `video_seconds`: the
    whole video's length.
    """

    part: int
    time_seconds: float
    pixels: NDArray[np.uint8]
    scale: float
    video_seconds: float


def sample_frames(
    path: Path, count: int, settings: Settings, wanted: Callable[[int], bool] = lambda part: True
) -> Iterator[VideoSample]:
    """Yield up to `count` frames spread over the time that exists, one from each of as many equal parts.

    Only what these frames need is decoded, and nothing for a part that `wanted` (asked when its turn comes) says no
    to. One frame is held at a time, and none is given twice; the video's packets, no larger than the file, are held as
    well. Raises MediaRefused as `check_selfie_video` does, TRUNCATED excepted: what is there is used.
    """
    with open_video(path, settings) as (container, stream):
        packets = list(packets_of(container, stream, path, settings, whole=False))
        times = timeline(packets, stream)
        chosen, needed = times.plan(count)
        refuse_laborious(needed, stream)
        alone = all(times.moments[each.first] == moment for moment, each in chosen.items())
        how = _alone if alone else _in_a_row
        tick, found = packets[0].time_base or Fraction(1), False
        for frame, part in how(packets, stream, settings, chosen, needed, wanted):
            found = True
            moment = max(0.0, float((frame.pts or 0) * tick) - times.begin)
            pixels, scale = shown(frame, stream.sample_aspect_ratio, LONGEST_SIDE)
            yield VideoSample(part, moment, pixels, scale, times.end - times.begin)
    if not found:
        raise MediaRefused(
            "VIDEO_UNREADABLE", f"No frame of the selfie video ({stream.name}) decodes. Record it again."
        )


class Wanted(NamedTuple):
    """A frame to look at: which part of the time it stands for, and the packet from which to decode up to it."""

    part: int
    first: int


@dataclass(frozen=True)
class Timeline:
    """When a video's frames are shown, as its packets say.

    `moments`: seconds of the packets in the order of decoding. `keys`: those among them that need no other. `hidden`:
    those that are decoded for others only, as an edit list leaves them out. `begin`, `end`: of what is shown.
    """

    moments: Sequence[float]
    keys: Sequence[int]
    hidden: Collection[int]
    begin: float
    end: float

    def plan(self, count: int) -> tuple[dict[float, Wanted], list[int]]:
        """`count` frames to look at, and the packets to decode for them: see `plan` and `needed_for`."""
        chosen = plan(self.moments, self.keys, self.end, count, self.hidden)
        return chosen, needed_for(chosen, self.moments, self.keys)

    @property
    def lead_in(self) -> tuple[int, int]:
        """The first packet that is shown, and the one from which to decode up to it."""
        first = next(index for index in range(len(self.moments)) if index not in self.hidden)
        return first, max((key for key in self.keys if key <= first), default=0)


def timeline(packets: Iterable[Packet[VideoStream]], stream: VideoStream) -> Timeline:
    """The times of a video's packets, of which there is one at least.

    Raises:
        MediaRefused: VIDEO_WITHOUT_FRAMES, as none of them is shown.
    """
    moments, keys, hidden = list[float](), list[int](), set[int]()
    begin, end = math.inf, -math.inf
    for index, packet in enumerate(packets):
        moments.append(moment_of(packet))
        if packet.is_keyframe:
            keys.append(index)
        if packet.is_discard:
            hidden.add(index)
            continue
        begin = min(begin, moments[-1])
        end = max(end, moments[-1] + seconds_of(packet, packet.duration))
    if len(hidden) == len(moments):
        raise MediaRefused("VIDEO_WITHOUT_FRAMES", "The selfie video's edit list hides all of it. Record it again.")
    if len(keys) == len(moments) and stream.name not in _ALL_KEYS:
        keys = []  # a container that marks every frame says nothing
    return Timeline(moments, keys, hidden, begin, end)


def refuse_laborious(needed: Sequence[int], stream: VideoStream) -> None:
    """Refuse a video of which too much would have to be decoded.

    Raises:
        MediaRefused: VIDEO_UNREADABLE.
    """
    if len(needed) * stream.codec_context.width * stream.codec_context.height > MOST_PIXELS_DECODED:
        raise MediaRefused(
            "VIDEO_UNREADABLE",
            "The selfie video has too few key frames for its length and size. Record a shorter or smaller one.",
        )


def plan(
    moments: Sequence[float], keys: Sequence[int], end: float, count: int, hidden: Collection[int] = ()
) -> dict[float, Wanted]:
    """Which frames to look at, by their moments, ascending.

    The time is cut into `count` equal parts. A part's key frame stands for it, the one next to its middle; a part
    without one is seen at its middle. The rest as in `Timeline`.
    """
    visible = sorted(moment for index, moment in enumerate(moments) if index not in hidden)
    step = (end - visible[0]) / count
    chosen: dict[float, Wanted] = {}
    for part in range(count):
        begin, middle = visible[0] + step * part, visible[0] + step * (part + 0.5)
        inside = [key for key in keys if begin <= moments[key] < begin + step and key not in hidden]
        if inside:
            key = min(inside, key=lambda index: abs(moments[index] - middle))
            chosen[moments[key]] = Wanted(part, key)
        else:
            on_show = visible[max(0, bisect_right(visible, middle) - 1)]
            before = max((key for key in keys if moments[key] <= on_show), default=0)
            chosen.setdefault(on_show, Wanted(part, before))
    return dict(sorted(chosen.items()))


def needed_for(chosen: Mapping[float, Wanted], moments: Sequence[float], keys: Sequence[int]) -> list[int]:
    """Indices of the packets to decode for what `plan` gave, in order."""
    until: dict[int, float] = {}
    for moment, wanted in chosen.items():
        until[wanted.first] = max(until.get(wanted.first, -math.inf), moment)
    needed = []
    for first in sorted(until):
        needed.append(first)
        if until[first] <= moments[first]:
            continue
        following = bisect_right(keys, first)
        for index in range(first + 1, keys[following] if following < len(keys) else len(moments)):
            needed.append(index)
            # Frames are decoded in another order than shown; a few more bring the last wanted one out.
            if moments[index] > until[first] + _REORDERING_SECONDS:
                break
    return needed


def _alone(
    packets: Sequence[Packet[VideoStream]],
    stream: VideoStream,
    settings: Settings,
    chosen: Mapping[float, Wanted],
    needed: Sequence[int],
    wanted: Callable[[int], bool],
) -> Iterator[tuple[VideoFrame, int]]:
    """Key frames, each decoded by itself."""
    stream.thread_type = "SLICE"  # threads over frames would hold frames back
    parts = {each.first: each.part for each in chosen.values()}
    for index in needed:
        if wanted(parts[index]):
            for frame in list(decode([packets[index]], stream, settings, drained=True))[:1]:
                yield frame, parts[index]


def _in_a_row(
    packets: Sequence[Packet[VideoStream]],
    stream: VideoStream,
    settings: Settings,
    chosen: Mapping[float, Wanted],
    needed: Sequence[int],
    wanted: Callable[[int], bool],
) -> Iterator[tuple[VideoFrame, int]]:
    """Frames that others lead to: all of these are decoded, and the first one at or after each moment is given."""
    stream.thread_type = "AUTO"
    if len(needed) > _FEW_ON_THE_WAY * len(chosen):
        # Frames that no other is made from are passed over; a wanted one among them has a close neighbour.
        stream.codec_context.skip_frame = "NONREF"
    left, tick = list(chosen), packets[0].time_base or Fraction(1)
    for frame in decode((packets[index] for index in needed), stream, settings):
        moment = -math.inf if frame.pts is None else float(frame.pts * tick)
        reached = [each for each in left if each <= moment + _TICK]
        if not reached:
            continue
        left = left[len(reached) :]
        if wanted(part := chosen[reached[-1]].part):
            yield frame, part
        if not left:
            return
