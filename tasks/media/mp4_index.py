"""How much an MP4 file's index claims, read before FFmpeg builds that index in memory.

A box of 20 bytes may claim 2^32 frames of the same size; FFmpeg would take 72 bytes for each, and seconds of time.
"""

import mmap
import re
import struct
from pathlib import Path

from tasks.media.containers import MOST_BOXES

_MOST_EDITS = 100  # each may repeat the whole index; phones write one to three
# FFmpeg takes 2 microseconds for each of its boxes, which may have 8 bytes. 60 s at 240 frames need about 0.5 MiB.
_MOST_INDEX_BYTES = 4 * 1024 * 1024
# Full boxes of ISO/IEC 14496-12 that claim samples: sizes, times, offsets between times, fragments, edits. Looked for
# anywhere outside of media data, as FFmpeg does not mind where they are nested. A compressed index hides them: refused.
_CLAIMS = re.compile(rb"stsz|stz2|stts|ctts|trun|elst|cmov")
_TABLES = {b"stts", b"ctts"}
_SKIPPED = {b"free", b"skip", b"wide", b"uuid"}  # FFmpeg jumps over these, at a file's top level, in one step


def claims_more_than(path: Path, samples: int) -> bool:
    """Whether the file's index claims more than the given samples, all tracks together, or is itself too large."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        ranges = _outside_media_data(data)
        if ranges is None:
            return True
        # Running totals over all tables, so that no file makes this read more than its samples could need.
        sized, edits = 0, 0
        entries, counted = 0, {b"stts": 0, b"ctts": 0}
        for begin, end in ranges:
            for claim in _CLAIMS.finditer(data, begin, end):
                name, at = claim.group(), claim.end() + 4  # version and flags
                if name == b"cmov":
                    return True
                if name in _TABLES:
                    entries += _number(data, at)
                    if entries > 2 * samples:  # both tables may have an entry for each sample
                        return True
                    counted[name] += _summed_counts(data, at)
                elif name == b"elst":
                    edits += _number(data, at)
                else:
                    sized += _number(data, at if name == b"trun" else at + 4)
                if max(sized, *counted.values()) > samples or edits > _MOST_EDITS:
                    return True
    return False


def _outside_media_data(data: mmap.mmap) -> list[tuple[int, int]] | None:
    """Ranges of bytes outside of top-level boxes "mdat"; what is no box counts as outside. None: too many or large."""
    ranges: list[tuple[int, int]] = []
    at, end, boxes, index_bytes = 0, len(data), 0, 0
    while at + 8 <= end:
        size, name = _number(data, at), data[at + 4 : at + 8]
        if size == 1 and at + 16 <= end:
            size = int.from_bytes(data[at + 8 : at + 16], "big")
        elif size == 0:
            size = end - at
        if size < 8:
            break
        boxes += 1
        after = min(at + size, end)
        if name != b"mdat":
            index_bytes += 0 if name in _SKIPPED else after - at
            if ranges and ranges[-1][1] == at:
                ranges[-1] = (ranges[-1][0], after)
            else:
                ranges.append((at, after))
        if boxes > MOST_BOXES or index_bytes > _MOST_INDEX_BYTES:
            return None
        at += size
    if at < end:
        ranges.append((at, end))
    return ranges


def _summed_counts(data: mmap.mmap, at: int) -> int:
    """Sum over a table of (count, value) pairs, whose length stands at an offset."""
    table = data[at + 4 : at + 4 + 8 * _number(data, at)]
    return sum(count for count, _ in struct.iter_unpack(">II", table[: len(table) // 8 * 8]))


def _number(data: mmap.mmap, at: int) -> int:
    return int.from_bytes(data[at : at + 4], "big")
