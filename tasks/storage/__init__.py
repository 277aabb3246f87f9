"""Object store: one interface, on a local folder or S3. Nothing else knows which."""

from collections.abc import Collection, Iterator
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple, Protocol
from urllib.parse import unquote, urlsplit

from tasks.settings import Settings


class StoredObject(NamedTuple):
    """An object, and since when it has been in the store."""

    key: str
    modified_at: datetime
    size_bytes: int


class Storage(Protocol):
    """Objects that are written once, whole or not at all; `replace` says what is not. Safe to share between threads.

    Every method raises StorageUnavailable (may pass) or ConfigurationError (access denied, no such bucket or folder),
    and ValueError for a key that could leave the store.
    """

    def put(self, key: str, source: Path) -> None:
        """Store a file's bytes. A key that is there keeps its first bytes: a lost answer may be asked for again."""

    def newest(self, prefix: str) -> str | None:
        """The lexicographically greatest key that begins with the prefix; None when there is none.

        Names that are no keys are left out: an upload tool's hidden parts, a console's "folders".
        """

    def listing(self, prefix: str) -> Iterator[StoredObject]:
        """The objects whose keys begin with the prefix, in no order; those that come or go meanwhile may be missing.

        Asks for them while it is iterated over. Leaves out what `newest` leaves out.
        """

    def listing_of(self, prefixes: Collection[str]) -> Iterator[StoredObject]:
        """The objects under any of these prefixes; others may come along, where one listing for many is cheaper."""

    def size(self, key: str) -> int | None:
        """Size in bytes; None when there is no such object."""

    def download(self, key: str, destination: Path) -> None:
        """Write the object's bytes to a file. Raises ObjectMissing."""

    def replace(self, key: str, content: bytes) -> None:
        """Store a few bytes that may be lost and may change, as those of a cache do. Never for what was uploaded."""

    def read(self, key: str, most_bytes: int) -> bytes | None:
        """The bytes of a small object; None when there is no such object, or it has more bytes than that."""

    def delete(self, key: str) -> None:
        """Remove an object. One that is not there is fine: a lost answer may be asked for again."""

    def url(self, key: str) -> str:
        """Where the object lies, for people."""

    def check(self) -> None:
        """Prove that objects can be written and read."""


def open_storage(settings: Settings) -> Storage:
    """The store that the settings name; the same object for the same settings."""
    endpoint = str(settings.s3_endpoint_url) if settings.s3_endpoint_url else None
    return _open(settings.storage, endpoint, settings.s3_credentials_block)


@lru_cache(maxsize=8)
def _open(url: str, endpoint_url: str | None, credentials_block: str | None) -> Storage:
    where = urlsplit(url)
    if where.scheme == "file":
        from tasks.storage.local import LocalStorage

        return LocalStorage(Path(unquote(where.path)))
    # Importing prefect_aws takes seconds, which a local folder need not wait for.
    from tasks.storage.s3 import S3Storage, s3_client

    return S3Storage(where.netloc, where.path, lambda: s3_client(endpoint_url, credentials_block))
