"""The first look at a file: how many bytes, and which ones stand at its beginning."""

from pathlib import Path

from tasks.errors import MediaRefused

HEAD_BYTES = 16
"""Enough for every signature that is looked for."""


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
