"""The first look at a file: how many bytes, which ones stand at its beginning, and whether something is around it."""

from pathlib import Path

from tasks.errors import MediaRefused

HEAD_BYTES = 16
"""Enough for every signature that is looked for."""

# The second: how JPEG, PNG, WebP, MP4 and Matroska files begin in base64, in small letters.
_WRAPPINGS = (
    ((b"data:",), "The body is a data URL. Decode what follows its comma, and send those bytes."),
    ((b"/9j/", b"ivborw0kggo", b"uklgr", b"aaaa", b"gkxfo"), "The body is in base64. Decode it, and send the bytes."),
    ((b"--",), "The body is a form. Send the file itself as the body (`curl --upload-file`)."),
    ((b"{", b"[", b'"'), "The body is JSON. Send the file itself as the body (`curl --upload-file`)."),
    ((b"\x1f\x8b",), "The body is compressed with gzip. Send the file as it is."),
    ((b"pk\x03\x04",), "The body is a ZIP archive. Send the file that is in it."),
)


def read_head(path: Path, what: str, max_bytes: int) -> bytes:
    """First `HEAD_BYTES` of a file, once its size is within bounds.

    `what` names the file in messages ("ID image"). Raises MediaRefused: EMPTY, TOO_LARGE.
    """
    size = path.stat().st_size
    if size == 0:
        raise MediaRefused("EMPTY", f"The {what} has no bytes. Upload it again.")
    if size > max_bytes:
        raise MediaRefused(
            "TOO_LARGE", f"The {what} has {size:,} bytes and {max_bytes:,} are allowed. Upload a smaller one."
        )
    with path.open("rb") as file:
        return file.read(HEAD_BYTES)


def wrapping(head: bytes) -> str | None:
    """What a client has put around a file, and what to do: a sentence. None when nothing shows."""
    begin = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    return next((says for beginnings, says in _WRAPPINGS if begin.lower().startswith(beginnings)), None)
