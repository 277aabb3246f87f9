"""What PNG files are made of (ISO/IEC 15948), read before Pillow does: too many parts, or damaged ones."""

import mmap
import zlib

MOST_CHUNKS = 20_000
"""Pillow takes microseconds for each, and they may have 12 bytes."""

_SIGNATURE_BYTES = 8
_ANCILLARY = 0x20
"""The bit of a chunk's first letter that says: the picture can be shown without it."""


def is_laborious(data: mmap.mmap) -> bool:
    """Whether there are too many chunks, or colour profiles, each of which Pillow inflates to as much as 1 MB."""
    at, profiles = _SIGNATURE_BYTES, 0
    for _ in range(MOST_CHUNKS):
        name = data[at + 4 : at + 8]
        profiles += name == b"iCCP"
        if profiles > 1:  # no more are allowed by the PNG specification
            return True
        if len(name) < 4 or name == b"IEND":
            return False
        at += 12 + int.from_bytes(data[at : at + 4], "big")
    return True


def without_damaged_extras(data: mmap.mmap) -> bytes | None:
    """The file without the chunks whose sum is wrong, where the pixels do not need these; None if there are none.

    Of a file that `is_laborious` has let pass.
    """
    at, sound, begin = _SIGNATURE_BYTES, list[tuple[int, int]](), 0
    while True:
        length, name = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8]
        end = at + 12 + length
        if len(name) < 4 or end > len(data):
            break
        if name[0] & _ANCILLARY and zlib.crc32(data[at + 4 : end - 4]) != int.from_bytes(data[end - 4 : end], "big"):
            sound.append((begin, at))
            begin = end
        at = end
        if name == b"IEND":
            break
    if not sound:
        return None
    return b"".join(data[first:last] for first, last in [*sound, (begin, len(data))])
