"""Tasks: is the file there, and which bytes are it?"""

import asyncio
import logging
import tempfile
from pathlib import Path
from uuid import UUID

from prefect import task
from prefect.cache_policies import NO_CACHE
from sqlalchemy import Engine

from tasks.caching import cached
from tasks.contracts import Attempt, FileKind, FilePair, Plain, StoredFile
from tasks.database import database_for
from tasks.database.attempts import get_attempt, note_run, open_attempt, register_upload, registered, take_up
from tasks.errors import ObjectMissing
from tasks.retries import patiently, retried
from tasks.settings import current_settings
from tasks.storage import Storage, open_storage
from tasks.storage.files import hash_file
from tasks.storage.keys import SESSION_RESULTS, file_prefix

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


async def look_for_files(session_id: str, attempt: int) -> dict[FileKind, FoundFile]:
    """The newest file of each kind, as far as they are there. Never cached: one may be replaced until the decision.

    A file that another system put into storage is newer than every recorded one, if its name sorts last. Among the
    recorded, the record's own order counts, which does not depend on anybody's clock.

    Raises:
        ObjectMissing: a recorded file is gone from storage. StorageUnavailable, DatabaseUnavailable: tried again first.
    """

    async def look() -> dict[FileKind, FoundFile]:
        found = await asyncio.gather(*(asyncio.to_thread(_look, session_id, attempt, kind) for kind in FileKind))
        return {kind: file for kind, file in zip(FileKind, found, strict=True) if file is not None}

    return await patiently(6, look)


def _look(session_id: str, attempt: int, kind: FileKind) -> FoundFile | None:
    settings = current_settings()
    database, storage = database_for(settings), open_storage(settings)
    newest = storage.newest(file_prefix(session_id, attempt, kind))
    if newest is not None and not registered(database, [newest]) and _usable(storage, newest, settings.max_bytes(kind)):
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


@task(name="find file", **cached(SESSION_RESULTS, "session_id", "attempt", "kind", "storage_key"), **retried(6))
async def find_file(session_id: str, attempt: int, kind: FileKind, storage_key: str) -> str:
    """The storage key of a file whose size and SHA-256 are recorded; recorded now if another system put it there.

    Raises:
        SessionDecided: it came too late. StorageUnavailable, DatabaseUnavailable: tried again first.
    """
    await asyncio.to_thread(_record, session_id, attempt, kind, storage_key)
    return storage_key


FIND = {kind: find_file.with_options(name=f"find {kind.value.replace('_', ' ')}") for kind in FileKind}


def _record(session_id: str, attempt: int, kind: FileKind, storage_key: str) -> None:
    settings = current_settings()
    database = database_for(settings)
    if registered(database, [storage_key]):
        return
    with tempfile.TemporaryDirectory(prefix="kycflow-") as folder:
        path = Path(folder) / "file"
        open_storage(settings).download(storage_key, path)
        sha256, size_bytes = hash_file(path)
    stored = StoredFile(storage_key=storage_key, sha256=sha256, size_bytes=size_bytes)
    register_upload(database, session_id, attempt, kind, stored, by="storage")


async def found_before(decided: Attempt) -> None:
    """Have the tasks that found a decided attempt's files tell of them once more."""
    for kind in FileKind:
        if (file := decided.files.of(kind)) is not None:
            await FIND[kind](decided.session_id, decided.attempt, kind, file.storage_key)


async def find_files(session_id: str, attempt: int) -> FilePair:
    """What is there of both files: each that a look sees is found by a task of its own, and recorded by it.

    Raises: as `look_for_files` and `find_file` do.
    """
    seen = await look_for_files(session_id, attempt)
    for kind, file in seen.items():
        # Where there is no row, as in an older database that was restored, a result of before is no answer.
        find = FIND[kind] if file.recorded else FIND[kind].with_options(refresh_cache=True)
        await find(session_id, attempt, kind, file.storage_key)
    if all(file.recorded for file in seen.values()):
        return FilePair(**{kind.value: file.recorded for kind, file in seen.items()})

    async def recorded() -> FilePair:
        return (await asyncio.to_thread(get_attempt, database_for(current_settings()), session_id, attempt)).files

    return await patiently(6, recorded)
