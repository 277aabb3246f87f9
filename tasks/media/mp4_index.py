"""How many frames an MP4 file's index claims, read before FFmpeg builds that index in memory.

A box of 20 bytes may claim 2^32 frames of the same size; FFmpeg would take 72 bytes for each, and seconds of time.
"""

import mmap
import re
import struct
from pathlib import Path

_MOST_EDITS = 100  # each may repeat the whole index; phones write one to three
# Full boxes of ISO/IEC 14496-12 that claim samples: sizes, times, offsets between times, fragments, edits. Looked for
# anywhere outside of media data, as FFmpeg does not mind where they are nested. A compressed index hides them: refused.
_CLAIMS = re.compile(rb"stsz|stz2|stts|ctts|trun|elst|cmov")


def claims_more_than(path: Path, samples: int) -> bool:
    """Whether the file's index claims more samples, all tracks together, than the given bound."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        sized = 0
        for begin, end in _outside_media_data(data):
            for claim in _CLAIMS.finditer(data, begin, end):
                name, at = claim.group(), claim.end() + 4  # version and flags
                if name == b"cmov":
                    return True
                if name in {b"stts", b"ctts"}:
                    if _summed_counts(data, at, samples) > samples:
                        return True
                elif name == b"elst":
                    if _number(data, at) > _MOST_EDITS:
                        return True
                else:
                    sized += _number(data, at if name == b"trun" else at + 4)
                    if sized > samples:
                        return True
    return False


def _outside_media_data(data: mmap.mmap) -> list[tuple[int, int]]:
    """Ranges of bytes outside of top-level boxes "mdat"; what is no box counts as outside."""
    ranges, at, end = [], 0, len(data)
    while at + 8 <= end:
        size = _number(data, at)
        if size == 1 and at + 16 <= end:
            size = int.from_bytes(data[at + 8 : at + 16], "big")
        elif size == 0:
            size = end - at
        if size < 8:
            break
        if data[at + 4 : at + 8] != b"mdat":
            ranges.append((at, min(at + size, end)))
        at += size
    if at < end:
        ranges.append((at, end))
    return ranges


def _summed_counts(data: mmap.mmap, at: int, bound: int) -> int:
    """Sum over a table of (count, value) pairs, whose length stands at an offset."""
    entries = _number(data, at)
    if entries > bound:
        return entries
    table = data[at + 4 : at + 4 + 8 * entries]
    return sum(count for count, _ in struct.iter_unpack(">II", table[: len(table) // 8 * 8]))


def _number(data: mmap.mmap, at: int) -> int:
    return int.from_bytes(data[at : at + 4], "big")
