"""Tasks: is the file there, and which bytes are it?"""

import asyncio
import logging
import tempfile
from pathlib import Path
from uuid import UUID

from prefect import task
from prefect.cache_policies import NO_CACHE
from sqlalchemy import Engine

from tasks.contracts import Attempt, FileKind, FilePair, Plain, StoredFile
from tasks.database import database_for
from tasks.database.attempts import get_attempt, is_registered, note_run, open_attempt, register_upload, take_up
from tasks.errors import ObjectMissing
from tasks.retries import retried
from tasks.settings import current_settings
from tasks.storage import Storage, open_storage
from tasks.storage.files import hash_file
from tasks.storage.keys import file_prefix

log = logging.getLogger(__name__)


@task(name="open attempt", cache_policy=NO_CACHE, **retried(6))
async def open_session_attempt(
    session_id: str, attempt: int, deadline_seconds: int | None, flow_run_id: str
) -> Attempt:
    """The attempt as it stands; made now when another system uploaded its files and nobody created it here.

    One that was cancelled or had failed is taken up again.

    Raises:
        UnknownSession: a further attempt that was not asked for. SessionDeleted: it was deleted.
        DatabaseUnavailable: tried again.
    """
    settings = current_settings()
    seconds = deadline_seconds or settings.session_deadline_seconds
    return await asyncio.to_thread(_open, database_for(settings), session_id, attempt, seconds, flow_run_id)


def _open(database: Engine, session_id: str, attempt: int, deadline_seconds: float, flow_run_id: str) -> Attempt:
    by = f"flow run {flow_run_id}"
    open_attempt(database, session_id, attempt, deadline_seconds, by=by)
    found = take_up(database, session_id, attempt, by=by)
    if found.flow_run_id is None:
        note_run(database, session_id, attempt, UUID(flow_run_id), by=by)
    return found


class FoundFile(Plain):
    """A file in storage, with its size and SHA-256 if they are recorded already."""

    storage_key: str
    recorded: StoredFile | None


@task(name="find files", cache_policy=NO_CACHE, **retried(6))
async def look_for_files(session_id: str, attempt: int) -> dict[FileKind, FoundFile]:
    """The newest file of each kind, as far as they are there. Not cached: one may be replaced until the decision.

    A file that another system put into storage is newer than every recorded one, if its name sorts last. Among the
    recorded, the record's own order counts, which does not depend on anybody's clock.

    Raises:
        ObjectMissing: a recorded file is gone from storage. StorageUnavailable, DatabaseUnavailable: tried again first.
    """
    found = await asyncio.gather(*(asyncio.to_thread(_look, session_id, attempt, kind) for kind in FileKind))
    return {kind: file for kind, file in zip(FileKind, found, strict=True) if file is not None}


def _look(session_id: str, attempt: int, kind: FileKind) -> FoundFile | None:
    settings = current_settings()
    database, storage = database_for(settings), open_storage(settings)
    newest = storage.newest(file_prefix(session_id, attempt, kind))
    if (
        newest is not None
        and not is_registered(database, newest)
        and _usable(storage, newest, settings.max_bytes(kind))
    ):
        return FoundFile(storage_key=newest, recorded=None)
    recorded = get_attempt(database, session_id, attempt).files.of(kind)
    if recorded is None:
        return None
    if storage.size(recorded.storage_key) is None:
        raise ObjectMissing(f"{recorded.storage_key} was uploaded and is gone from storage. Send the file again.")
    return FoundFile(storage_key=recorded.storage_key, recorded=recorded)


def _usable(storage: Storage, key: str, most_bytes: int) -> bool:
    """Whether a file that another system put into storage has a size that is accepted; if not, it counts as missing."""
    size = storage.size(key) or 0
    if 0 < size <= most_bytes:
        return True
    log.warning(
        "%s has %d bytes, 1 to %d are accepted: it does not count",
        key,
        size,
        most_bytes,
        extra={"action": "file.ignored"},
    )
    return False


@task(name="register file", task_run_name="register {kind}", cache_policy=NO_CACHE, **retried(6))
async def register_file(session_id: str, attempt: int, kind: FileKind, storage_key: str) -> StoredFile:
    """The size and SHA-256 of a file that another system put into storage: read from there, and recorded.

    Not cached: the record is what keeps it, and a cached answer must not stand in for a row that is missing.

    Raises:
        SessionDecided: it came too late. StorageUnavailable, DatabaseUnavailable: tried again first.
    """
    return await asyncio.to_thread(_register, session_id, attempt, kind, storage_key)


def _register(session_id: str, attempt: int, kind: FileKind, storage_key: str) -> StoredFile:
    settings = current_settings()
    database = database_for(settings)
    recorded = get_attempt(database, session_id, attempt).files.of(kind)
    if recorded is not None and recorded.storage_key == storage_key:
        return recorded
    with tempfile.TemporaryDirectory(prefix="kycflow-") as folder:
        path = Path(folder) / "file"
        open_storage(settings).download(storage_key, path)
        sha256, size_bytes = hash_file(path)
    stored = StoredFile(storage_key=storage_key, sha256=sha256, size_bytes=size_bytes)
    register_upload(database, session_id, attempt, kind, stored, by="storage")
    return stored


async def find_files(session_id: str, attempt: int) -> FilePair:
    """What is there of both files, found by a task, and registered by another if the upload service has not."""
    found = await look_for_files(session_id, attempt)
    return FilePair(
        **{
            kind.value: file.recorded or await register_file(session_id, attempt, kind, file.storage_key)
            for kind, file in found.items()
        }
    )
