"""What a video file's own structure says, read without FFmpeg: which container, and whether its end is there.

Sources: ISO/IEC 14496-12 (boxes of MP4 and QuickTime), RFC 8794 (EBML of WebM and Matroska).
"""

import mmap
from pathlib import Path
from typing import Literal

Container = Literal["mov", "matroska"]
"""FFmpeg's names of the demuxers that may be used."""

_FIRST_BOXES = {b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip"}
_STILL_PICTURES = {b"heic", b"heix", b"heim", b"heis", b"mif1", b"msf1", b"avif", b"avis"}
# Boxes that FFmpeg needs; anything else at the end of a file may be junk that was added to it.
_NEEDED_BOXES = {b"moov", b"moof", b"mdat"}
_EBML = b"\x1a\x45\xdf\xa3"
_SEGMENT = b"\x18\x53\x80\x67"
MOST_BOXES = 100_000
"""At a file's top level. Fragmented files of phones and browsers have a few for each second."""

_SIMPLE_TAG = b"\x67\xc8"


def container_of(head: bytes) -> Container | None:
    """The container by a file's first 16 bytes; None for anything else, HEIC and AVIF pictures included."""
    if head.startswith(_EBML):
        return "matroska"
    if head[4:8] in _FIRST_BOXES and not (head[4:8] == b"ftyp" and head[8:12] in _STILL_PICTURES):
        return "mov"
    return None


def is_cut_off(path: Path, container: Container) -> bool:
    """Whether the file ends before a part that it announces. A live recording announces no length: False."""
    return _boxes_cut_off(path) if container == "mov" else _segment_cut_off(path)


def has_too_many_tags(path: Path) -> bool:
    """Whether a Matroska file may hold so many tags that FFmpeg, which compares each to all others, takes seconds.

    The two bytes that begin a tag are counted wherever they stand, as a file may point FFmpeg at tags anywhere; pure
    chance puts them into media data once in 65,536 bytes.
    """
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        most, at = 500 + len(data) // 50_000, -1
        for _ in range(most + 1):
            at = data.find(_SIMPLE_TAG, at + 1)
            if at < 0:
                return False
    return True


def _boxes_cut_off(path: Path) -> bool:
    end = path.stat().st_size
    with path.open("rb") as file:
        at = 0
        for _ in range(MOST_BOXES):
            file.seek(at)
            header = file.read(16)
            if len(header) < 8:
                return False
            size, name = int.from_bytes(header[:4], "big"), header[4:8]
            if size == 1:
                size = int.from_bytes(header[8:16], "big")
            if size < 8:  # 0 is "until the end"; the rest is no box
                return False
            if at + size > end:
                return name in _NEEDED_BOXES
            at += size
    return False


def _segment_cut_off(path: Path) -> bool:
    end = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(4096)
    header_size = _varint(head, 4)
    if header_size is None:
        return False
    at = header_size[1] + header_size[0]
    if head[at : at + 4] != _SEGMENT:
        return at >= end
    segment_size = _varint(head, at + 4)
    return segment_size is None or (segment_size[0] >= 0 and segment_size[1] + segment_size[0] > end)


def _varint(data: bytes, at: int) -> tuple[int, int] | None:
    """EBML's variable-length size at an offset and the offset after it; -1 is "unknown", None is "not all there"."""
    if at >= len(data) or data[at] == 0:
        return None
    length = 9 - data[at].bit_length()
    if at + length > len(data):
        return None
    value = int.from_bytes(data[at : at + length], "big") & ((1 << 7 * length) - 1)
    return (-1 if value == (1 << 7 * length) - 1 else value), at + length
