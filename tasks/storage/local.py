"""Object store in a local folder, readable by its owner only."""

import errno
import os
import secrets
import shutil
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from tasks.errors import ConfigurationError, ObjectMissing, StorageUnavailable
from tasks.storage import StoredObject
from tasks.storage.keys import is_valid_key, valid_key

SETUP_ERRORS = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.EEXIST}
LINK_TRIES = 10


class LocalStorage:
    """One file per object. A new object is copied beside the others and then linked into place."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.absolute()

    def put(self, key: str, source: Path) -> None:
        """Copies, so that a later change of the source changes no object; synced, so that a power cut does not."""
        with self._translated():
            target = self._path(key)
            _make_private(self.folder / ".incoming", self.folder)
            copy = self.folder / ".incoming" / secrets.token_hex(16)
            try:
                descriptor = os.open(copy, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
                with os.fdopen(descriptor, "wb") as file, source.open("rb") as original:
                    shutil.copyfileobj(original, file, 1024 * 1024)
                    file.flush()
                    os.fsync(file.fileno())
                self._place(target, lambda: _link(copy, target))
            finally:
                copy.unlink(missing_ok=True)

    def newest(self, prefix: str) -> str | None:
        """Looks into the prefix's folder only."""
        return max((stored.key for stored in self.listing(prefix)), default=None)

    def listing(self, prefix: str) -> Iterator[StoredObject]:
        """Looks into the prefix's folder only."""
        with self._translated():
            top = self._path(prefix.rstrip("/"))
            walk = os.walk(top if prefix.endswith("/") else top.parent, onerror=_raise_unless_missing)
            for file in (Path(root, name) for root, _, names in walk for name in names):
                key = file.relative_to(self.folder).as_posix()
                if not key.startswith(prefix) or not is_valid_key(key):
                    continue
                try:
                    # Not st_mtime: tools that bring a file here may keep that of the original.
                    found = file.stat()
                except FileNotFoundError:
                    continue  # deleted just now
                yield StoredObject(key, datetime.fromtimestamp(found.st_ctime, UTC), found.st_size)

    def listing_of(self, prefixes: Collection[str]) -> Iterator[StoredObject]:
        """Looks into these folders only."""
        for prefix in prefixes:
            yield from self.listing(prefix)

    def size(self, key: str) -> int | None:
        """See Storage."""
        with self._translated():
            try:
                return self._path(key).stat().st_size
            except FileNotFoundError:
                return None

    def download(self, key: str, destination: Path) -> None:
        """See Storage."""
        with self._translated():
            try:
                source = self._path(key).open("rb")
            except FileNotFoundError as exc:
                raise ObjectMissing(f"{self.url(key)} is not there. Was it deleted?") from exc
            with source, destination.open("wb") as target:
                shutil.copyfileobj(source, target, 1024 * 1024)

    def replace(self, key: str, content: bytes) -> None:
        """Not synced: after a power cut it may be empty, or the one before."""
        with self._translated():
            target = self._path(key)
            _make_private(self.folder / ".incoming", self.folder)
            copy = self.folder / ".incoming" / secrets.token_hex(16)
            try:
                with os.fdopen(os.open(copy, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                    file.write(content)
                self._place(target, lambda: os.replace(copy, target))
            finally:
                copy.unlink(missing_ok=True)

    def read(self, key: str, most_bytes: int) -> bytes | None:
        """See Storage."""
        with self._translated():
            try:
                with self._path(key).open("rb") as file:
                    content = file.read(most_bytes + 1)
            except FileNotFoundError:
                return None
            return content if len(content) <= most_bytes else None

    def delete(self, key: str) -> None:
        """Removes the folders that it leaves empty, too, except the uppermost: their names say whose they were."""
        with self._translated():
            path = self._path(key)
            path.unlink(missing_ok=True)
            for folder in path.parents[: max(key.count("/") - 1, 0)]:
                try:
                    folder.rmdir()
                except FileNotFoundError:
                    continue  # by an earlier deletion, which may not have come further
                except OSError:
                    break  # not empty, or not ours: the object is gone, which is what was asked for

    def url(self, key: str) -> str:
        """Path of the object's file."""
        return str(self.folder / valid_key(key))

    def check(self) -> None:
        """Writes and removes a file."""
        with self._translated():
            _make_private(self.folder, self.folder)
            probe = self.folder / f".check-{secrets.token_hex(4)}"
            probe.write_bytes(b"kycflow")
            probe.unlink()

    def _place(self, target: Path, place: Callable[[], None]) -> None:
        """Give a file its final name. A deletion may remove the folder, empty as yet, just before: make it again."""
        for tries_left in reversed(range(LINK_TRIES)):
            try:
                _make_private(target.parent, self.folder)
                place()
            except FileNotFoundError:
                if not tries_left:
                    raise
            else:
                return

    def _path(self, key: str) -> Path:
        path = self.folder / valid_key(key)
        if not path.resolve().is_relative_to(self.folder.resolve()):
            raise ValueError(f"{key!r} leads out of {self.folder} through a symbolic link.")
        return path

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except OSError as exc:
            if exc.errno in SETUP_ERRORS:
                raise ConfigurationError(
                    f"Storage folder {self.folder} cannot be used: {exc}. Set KYCFLOW_STORAGE_URL or its owner."
                ) from exc
            raise StorageUnavailable(f"Storage folder {self.folder} does not answer: {exc}.") from exc


def _link(copy: Path, target: Path) -> None:
    with suppress(FileExistsError):
        os.link(copy, target)
    _sync_folder(target.parent)


def _raise_unless_missing(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):
        raise error


def _make_private(folder: Path, top: Path) -> None:
    """Make a folder and those above it, up to the store's own, for their owner only."""
    if folder.is_dir():
        return
    if folder != top:
        _make_private(folder.parent, top)
        folder.mkdir(mode=0o700, exist_ok=True)
    else:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    _sync_folder(folder.parent)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
