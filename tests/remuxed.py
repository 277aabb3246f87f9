"""Videos whose containers say more than which frames there are: edit lists, further tracks, the shape of pixels."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.bitstream import BitStreamFilterContext
from av.stream import Disposition
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from numpy.typing import NDArray


def hide_beginning(path: Path, seconds: float) -> Path:
    """Have an edit list leave out the first seconds of an MP4, as phones do that trim a video without encoding it."""
    whole = path.rename(path.with_suffix(".whole"))
    with (
        av.open(str(whole), format="mov") as read,
        av.open(str(path), "w", format="mp4", options={"use_editlist": "1", "avoid_negative_ts": "disabled"}) as made,
    ):
        stream = made.add_stream_from_template(read.streams.video[0])
        for packet in read.demux(video=0):
            if packet.pts is not None and packet.dts is not None:
                shift = round(seconds / packet.time_base)
                packet.pts, packet.dts, packet.stream = packet.pts - shift, packet.dts - shift, stream
                made.mux(packet)
    return path


def put_before(path: Path, pictures: list[NDArray[np.uint8]], *, enabled: bool) -> Path:
    """Put another video track before that of a QuickTime file: a preview, or a depth map, which is not enabled."""
    whole = path.rename(path.with_suffix(".whole"))
    with av.open(str(whole), format="mov") as read, av.open(str(path), "w", format="mov") as made:
        other = made.add_stream("mjpeg", rate=10)
        assert isinstance(other, VideoStream)
        other.height, other.width = pictures[0].shape[:2]
        other.pix_fmt = "yuvj420p"
        main = made.add_stream_from_template(read.streams.video[0])
        other.disposition = Disposition.default if enabled else Disposition(0)
        main.disposition = Disposition.default
        for index, pixels in enumerate(pictures):
            frame = VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = index, Fraction(1, 10)
            made.mux(other.encode(frame))
        made.mux(other.encode())
        for packet in read.demux(video=0):
            if packet.dts is not None:
                packet.stream = main
                made.mux(packet)
    return path


def with_pixel_shape(path: Path, shape: Fraction) -> Path:
    """Say in an H.264 stream's headers how wide its pixels are for their height."""
    square = path.rename(path.with_suffix(".square"))
    with av.open(str(square)) as read, av.open(str(path), "w") as made:
        stream = made.add_stream_from_template(read.streams.video[0])
        change = BitStreamFilterContext(f"h264_metadata=sample_aspect_ratio={shape}", read.streams.video[0], stream)
        for packet in read.demux(video=0):
            for changed in change.filter(packet if packet.dts is not None else None):
                changed.stream = stream
                made.mux(changed)
    return path


def with_matrix(path: Path, matrix: tuple[int, int, int, int]) -> Path:
    """Write the (a, b, c, d) of a display matrix into an MP4 or QuickTime file (ISO/IEC 14496-12, 8.3.2)."""
    a, b, c, d = (value << 16 for value in matrix)
    content = bytearray(path.read_bytes())
    at = content.index(b"tkhd") + 44
    content[at : at + 36] = b"".join(
        value.to_bytes(4, "big", signed=True) for value in (a, b, 0, c, d, 0, 0, 0, 1 << 30)
    )
    path.write_bytes(content)
    return path
