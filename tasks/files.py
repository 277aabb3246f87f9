"""Tasks: is the file there, and which bytes are it?"""

import asyncio
import tempfile
from pathlib import Path

from prefect import task
from prefect.cache_policies import NO_CACHE

from tasks.contracts import Attempt, FileKind, FilePair, StoredFile
from tasks.database import database_for
from tasks.database.attempts import get_attempt, is_registered, open_attempt, register_upload
from tasks.errors import MediaRefused
from tasks.retries import retried
from tasks.settings import Settings
from tasks.storage import open_storage
from tasks.storage.files import hash_file
from tasks.storage.keys import file_prefix


@task(name="open attempt", cache_policy=NO_CACHE, **retried(4))
async def open_session_attempt(session_id: str, attempt: int, deadline_seconds: int | None) -> Attempt:
    """The attempt as it stands; made now when another system uploaded its files and nobody created it here."""
    settings = Settings()
    found, _ = await asyncio.to_thread(
        open_attempt,
        database_for(settings),
        session_id,
        attempt,
        deadline_seconds or settings.session_deadline_seconds,
    )
    return found


@task(name="find file", task_run_name="find {kind}", cache_policy=NO_CACHE, **retried(4))
async def find_file(session_id: str, attempt: int, kind: FileKind) -> str | None:
    """Storage key of the newest file of that kind, or None. Not cached: a file may be replaced until the decision.

    A file that another system put into storage is newer than every recorded one, if its name sorts last. Among the
    recorded, the record's own order counts, which does not depend on anybody's clock.
    """
    return await asyncio.to_thread(_look, session_id, attempt, kind)


def _look(session_id: str, attempt: int, kind: FileKind) -> str | None:
    settings = Settings()
    database = database_for(settings)
    newest = open_storage(settings).newest(file_prefix(session_id, attempt, kind))
    if newest is None or not is_registered(database, newest):
        return newest
    recorded: StoredFile | None = getattr(get_attempt(database, session_id, attempt).files, kind.value)
    return None if recorded is None else recorded.storage_key


@task(
    name="register file",
    task_run_name="register {kind}",
    # Objects are never overwritten, so the storage key names the bytes.
    cache_key_fn=lambda _context, parameters: f"kycflow-file-{parameters['storage_key'].replace('/', '-')}",
    **retried(4),
)
async def register_file(session_id: str, attempt: int, kind: FileKind, storage_key: str) -> StoredFile:
    """The file's size and SHA-256: as recorded by the upload service, else read from storage and recorded."""
    return await asyncio.to_thread(_register, session_id, attempt, kind, storage_key)


def _register(session_id: str, attempt: int, kind: FileKind, storage_key: str) -> StoredFile:
    settings = Settings()
    database = database_for(settings)
    recorded: StoredFile | None = getattr(get_attempt(database, session_id, attempt).files, kind.value)
    if recorded is not None and recorded.storage_key == storage_key:
        return recorded
    storage = open_storage(settings)
    limit = settings.max_id_image_bytes if kind is FileKind.ID_IMAGE else settings.max_selfie_video_bytes
    if (size := storage.size(storage_key)) is not None and size > limit:
        raise MediaRefused("TOO_LARGE", f"{storage_key} has {size} bytes, {limit} are accepted. Put a smaller file.")
    with tempfile.TemporaryDirectory(prefix="kycflow-") as folder:
        path = Path(folder) / "file"
        storage.download(storage_key, path)
        sha256, size_bytes = hash_file(path)
    stored = StoredFile(storage_key=storage_key, sha256=sha256, size_bytes=size_bytes)
    register_upload(database, session_id, attempt, kind, stored)
    return stored


async def find_files(session_id: str, attempt: int) -> FilePair:
    """What is there of both files, each found and registered by its task."""
    return FilePair(
        id_image=await _find(session_id, attempt, FileKind.ID_IMAGE),
        selfie_video=await _find(session_id, attempt, FileKind.SELFIE_VIDEO),
    )


async def _find(session_id: str, attempt: int, kind: FileKind) -> StoredFile | None:
    key = await find_file(session_id, attempt, kind)
    return None if key is None else await register_file(session_id, attempt, kind, key)
