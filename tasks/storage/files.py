"""Bytes and their SHA-256."""

import hashlib
from pathlib import Path

from tasks.contracts import StoredFile
from tasks.errors import ObjectChanged
from tasks.storage import Storage


def hash_file(path: Path) -> tuple[str, int]:
    """SHA-256 of a file (lower-case hexadecimal) and its size in bytes. Never holds the file in memory."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return digest, file.tell()


def fetch(storage: Storage, stored: StoredFile, destination: Path) -> None:
    """Download a file and prove that it is the one announced.

    Raises ObjectMissing, and ObjectChanged when the bytes are others: then nothing is left at the destination.
    """
    storage.download(stored.storage_key, destination)
    sha256, size = hash_file(destination)
    if sha256 != stored.sha256:
        destination.unlink()
        raise ObjectChanged(
            f"{storage.url(stored.storage_key)} has SHA-256 {sha256} and {size} bytes; announced were {stored.sha256} "
            f"and {stored.size_bytes} bytes. Someone wrote to the store: look at its access log."
        )
