"""Real files, damaged at random: what may become of a file's bytes, drawn by Hypothesis."""

import re
import struct
import zlib
from typing import NamedTuple

from hypothesis import strategies as st

# Where a file says how long its parts are, how many it has, how large its picture is.
_STRUCTURE = {
    "JPEG": re.compile(rb"\xff[\xc0-\xfe]"),
    "PNG": re.compile(rb"IHDR|IDAT|IEND"),
    "WEBP": re.compile(rb"RIFF|WEBP|VP8 "),
    "MP4": re.compile(
        rb"ftyp|moov|mvhd|trak|tkhd|edts|elst|mdia|mdhd|minf|stbl|stsd|avc1|avcC|stts|ctts|stss|stsc|stsz|stco|mdat"
    ),
    "WebM": re.compile(
        rb"\x1a\x45\xdf\xa3|\x18\x53\x80\x67|\x16\x54\xae\x6b|\x1f\x43\xb6\x75|\x15\x49\xa9\x66|V_VP8"
        rb"|\xae\x01|\xe0\x01|\xe7\x81|\xa3[\x40-\x8f]|\x2a\xd7\xb1"
    ),
}
_NUMBERS = (0, 1, 2, 7, 8, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 2**63 - 1, 2**64 - 1)


class Place(NamedTuple):
    """An offset in any file: so many bytes after one of its marks of structure, or after its beginning.

    A file with fewer marks or bytes is gone round.
    """

    mark: int | None
    by: int

    def of(self, content: bytes, structure: re.Pattern[bytes]) -> int:
        """The offset in this file."""
        marks = [found.start() for found in structure.finditer(content)]
        begin = marks[self.mark % len(marks)] if self.mark is not None and marks else 0
        return max(0, begin + self.by) % (len(content) + 1)


class Copy(NamedTuple):
    """Bytes from another place of the file."""

    place: Place
    size: int


class Edit(NamedTuple):
    """So many bytes are removed from a place, and others put there."""

    place: Place
    removed: int
    put: bytes | Copy

    def of(self, content: bytes, structure: re.Pattern[bytes]) -> bytes:
        """The file, edited."""
        at, put = self.place.of(content, structure), self.put
        if isinstance(put, Copy):
            begin = put.place.of(content, structure)
            put = content[begin : begin + put.size]
        return content[:at] + put + content[at + self.removed :]


class Mutation(NamedTuple):
    """Edits, one after the other. `mended`: with sums that are right again. `behind`: a second file follows."""

    edits: tuple[Edit, ...]
    mended: bool
    behind: str | None

    def of(self, name: str, files: dict[str, bytes]) -> bytes:
        """The file of that name (JPEG, PNG, WEBP, MP4, WebM), mutated."""
        content = files[name]
        for edit in self.edits:
            content = edit.of(content, _STRUCTURE[name])
        if self.mended and content.startswith(b"\x89PNG"):
            content = _with_sums(content)
        return content if self.behind is None else content + files[self.behind]


def mutations() -> st.SearchStrategy[Mutation]:
    """What may become of any of the files."""
    far = st.integers(2**16, 2**32)  # gone round, so evenly spread: Hypothesis likes small numbers
    by_structure = st.builds(Place, far, st.integers(-4, 24))
    anywhere = st.builds(Place, st.none(), far)
    place = st.one_of(by_structure, anywhere)
    size = st.one_of(st.integers(1, 16), st.integers(1, 4096))
    # Numbers that are small, huge, or about to overflow, in both orders: lengths, counts, sizes.
    number = st.builds(
        lambda value, width, order: (value & (1 << 8 * width) - 1).to_bytes(width, order),
        st.one_of(st.sampled_from(_NUMBERS), st.integers(0, 2**64 - 1)),
        st.sampled_from((1, 2, 4, 8)),
        st.sampled_from(("big", "little")),
    )
    some = st.binary(min_size=1, max_size=64)
    over = st.builds(lambda place, put: Edit(place, len(put), put), place, st.one_of(number, number, some))
    edit = st.one_of(
        over,
        over,
        over,
        st.builds(Edit, place, st.just(0), some),
        st.builds(Edit, place, st.just(0), st.builds(Copy, place, size)),
        st.builds(Edit, place, size, st.just(b"")),
        st.builds(Edit, place, st.just(2**32), st.just(b"")),  # cut off
    )
    behind = st.one_of(st.none(), st.none(), st.none(), st.sampled_from(sorted(_STRUCTURE)))
    return st.builds(Mutation, st.lists(edit, min_size=1, max_size=3).map(tuple), st.booleans(), behind)


def _with_sums(png: bytes) -> bytes:
    """A PNG whose chunks have right sums, so that a decoder looks at what is in them."""
    found, at = [png[:8]], 8
    while at + 12 <= len(png):
        length = int.from_bytes(png[at : at + 4], "big")
        if at + 12 + length > len(png):
            break
        body = png[at + 4 : at + 8 + length]
        found += [png[at : at + 4], body, struct.pack(">I", zlib.crc32(body))]
        at += 12 + length
    return b"".join(found) + png[at:]
