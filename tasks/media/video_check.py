"""Whether a file can be a selfie video: all that the engine would refuse later, as far as that shows without faces."""

from itertools import islice
from pathlib import Path

from tasks.errors import MediaRefused
from tasks.media.sampling import refuse_laborious, timeline
from tasks.media.videos import decode, open_video, packets_of
from tasks.settings import Settings

_PACKETS_UNTIL_A_FRAME = 64  # more than any codec's reordering delay


def check_selfie_video(path: Path, settings: Settings) -> None:
    """Refuse a file that cannot be a selfie video: walks all packets, decodes up to the first frame that is shown.

    Raises MediaRefused: EMPTY, TOO_LARGE, NOT_A_VIDEO, VIDEO_UNREADABLE, VIDEO_WITHOUT_FRAMES, VIDEO_TOO_LONG,
    VIDEO_TOO_MANY_PIXELS, TRUNCATED.
    """
    with open_video(path, settings, checked=False) as (container, stream):
        times = timeline(packets_of(container, stream, path, settings, whole=True), stream)
        refuse_laborious(times.plan(settings.frames)[1], stream)
    with open_video(path, settings, checked=False) as (container, stream):
        first, begin = times.lead_in
        packets = packets_of(container, stream, path, settings, whole=False)
        packets = islice(packets, begin, first + _PACKETS_UNTIL_A_FRAME)
        if next(decode(packets, stream, settings), None) is None:
            raise MediaRefused(
                "VIDEO_UNREADABLE", f"The selfie video's first {stream.name} frame does not decode. Record it again."
            )
