"""One upload: body to a private file, checked, stored, recorded, and its flow run told."""

import asyncio
import hashlib
import logging
import os
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from fastapi import Request
from sqlalchemy import Engine
from starlette.exceptions import HTTPException

from deployments.upload_service.problems import RETRY_AFTER_SECONDS
from tasks.contracts import Attempt, FileKind, Status, StoredFile
from tasks.database.attempts import get_attempt, register_upload, session_decided
from tasks.errors import KycflowError, MediaRefused, Refused, SessionDeleted, StorageUnavailable
from tasks.media import check_id_image, check_selfie_video
from tasks.settings import Settings
from tasks.storage import Storage
from tasks.storage.keys import new_file_key

Trigger = Callable[[Attempt], Awaitable[bool]]

BLOCK_BYTES = 1024 * 1024
# Each body lies on the disk until it is stored, and takes a connection and its share of decoding.
MAX_BODIES = 64
# A mobile network may be silent for a while.
STALL_SECONDS = 60
# Else a byte now and then would hold one of the places for ever. The largest video needs 1.4 Mbit/s.
BODY_SECONDS = 600
TRIGGER_SECONDS = 15
ABANDONED_SECONDS = 3600

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Received:
    """A body that was written to a file."""

    path: Path
    sha256: str
    size_bytes: int


@dataclass(frozen=True)
class Uploads:
    """Takes uploads. One per application."""

    settings: Settings
    engine: Engine
    storage: Storage
    trigger: Trigger
    bodies: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(MAX_BODIES))
    # Decoding media takes a core each.
    checks: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(os.cpu_count() or 1))

    @property
    def folder(self) -> Path:
        """Where bodies lie while they are received and checked."""
        return self.settings.state_dir.absolute() / "incoming"

    def prepare(self) -> None:
        """Make the folder, and delete what a killed process left in it: these are people's faces."""
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for file in self.folder.iterdir():
            # Another process may be writing the younger ones.
            if file.stat().st_mtime < time.time() - ABANDONED_SECONDS:
                file.unlink(missing_ok=True)

    async def standing(self, session_id: str, attempt: int | None) -> Attempt:
        """An attempt as it stands; None asks for the latest.

        Raises:
            UnknownSession, SessionDeleted.
        """
        found = await asyncio.to_thread(get_attempt, self.engine, session_id, attempt)
        if found.status is Status.DELETED:
            raise SessionDeleted(
                f"Session {session_id!r} was deleted. Choose another id for a new one. What happened to it: "
                f"GET /sessions/{session_id}/audit."
            )
        return found

    async def take(
        self, request: Request, session_id: str, attempt: int | None, kind: FileKind
    ) -> tuple[Attempt, StoredFile, bool, bool]:
        """The attempt with the file, the file, whether it is a new one, and whether the flow run was told.

        Raises:
            UnknownSession, SessionDecided, SessionDeleted, MediaRefused: refused, as early as can be.
            StorageUnavailable, DatabaseUnavailable: send the file again, which has the same effect.
            HTTPException: 408 when the body stalls, 503 when too many are coming in.
            ClientDisconnect: the client went away; nothing is left.
        """
        found = await self.standing(session_id, attempt)
        if found.decision is not None:
            raise session_decided(session_id, found.attempt)
        limit = self.settings.max_bytes(kind)
        _refuse_early(request, kind, limit)
        async with self._received(request, kind, limit) as received:
            # Another file may have come while this one did, and then this one replaces it.
            found = await self.standing(session_id, found.attempt)
            current = found.files.of(kind)
            if current is not None and await asyncio.to_thread(self._is_there, current, received):
                new, stored = False, current
            else:
                check = check_id_image if kind is FileKind.ID_IMAGE else check_selfie_video
                async with self.checks:
                    await asyncio.to_thread(check, received.path, self.settings)
                new, (stored, found) = True, await asyncio.to_thread(self._store, found, kind, received)
        ids = {"session_id": session_id, "attempt": found.attempt, "kind": kind.value}
        log.info("file stored", extra={"action": "upload.stored", **ids, "size_bytes": stored.size_bytes, "new": new})
        started = await self.tell(found)
        if started != found.open:
            # It was given up and is taken up again, or was cancelled in the Prefect UI.
            found = await self.standing(session_id, found.attempt)
        return found, stored, new, started

    def _is_there(self, current: StoredFile, received: Received) -> bool:
        """Whether these bytes are the current file's. If its object was lost, sending the file again heals that."""
        return current.sha256 == received.sha256 and self.storage.size(current.storage_key) == received.size_bytes

    def _store(self, attempt: Attempt, kind: FileKind, received: Received) -> tuple[StoredFile, Attempt]:
        key = new_file_key(attempt.session_id, attempt.attempt, kind)
        self.storage.put(key, received.path)
        stored = StoredFile(storage_key=key, sha256=received.sha256, size_bytes=received.size_bytes)
        try:
            return stored, register_upload(self.engine, attempt.session_id, attempt.attempt, kind, stored)
        except Refused:
            # A decision or a deletion came first: no row names the object. After any other error one may.
            self._discard(attempt, key)
            raise

    def _discard(self, attempt: Attempt, key: str) -> None:
        try:
            self.storage.delete(key)
        except KycflowError:
            # The client's answer is the refusal all the same.
            ids = {"session_id": attempt.session_id, "attempt": attempt.attempt, "storage_key": key}
            log.exception("refused file is left in storage: delete it", extra={"action": "upload.not_deleted", **ids})

    async def tell(self, attempt: Attempt) -> bool:
        """Start or wake the flow run. The attempt is stored: a failure here loses nothing, as the sweep comes by."""
        try:
            async with asyncio.timeout(TRIGGER_SECONDS):
                return await self.trigger(attempt)
        except Exception:
            log.exception(
                "flow run not started; the sweep will",
                extra={"action": "upload.not_triggered", "session_id": attempt.session_id, "attempt": attempt.attempt},
            )
            return False

    @asynccontextmanager
    async def _received(self, request: Request, kind: FileKind, limit: int) -> AsyncIterator[Received]:
        """The request's body in a file that is gone afterwards, whatever happens."""
        if self.bodies.locked():
            log.warning("upload refused: too many at once", extra={"action": "upload.busy"})
            raise HTTPException(
                503,
                f"{MAX_BODIES} files are coming in already. Send the same request again: it has the same effect.",
                headers={"Retry-After": str(RETRY_AFTER_SECONDS)},
            )
        path = self.folder / secrets.token_hex(16)
        async with self.bodies:
            try:
                try:
                    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                        sha256, size = await _write(request, file, kind, limit)
                except OSError as exc:
                    raise StorageUnavailable(f"{self.folder} takes no upload: {exc}. Is its disk full?") from exc
                yield Received(path, sha256, size)
            finally:
                path.unlink(missing_ok=True)


async def _write(request: Request, file: BinaryIO, kind: FileKind, limit: int) -> tuple[str, int]:
    digest, size, block = hashlib.sha256(), 0, bytearray()

    def flush() -> None:
        file.write(block)
        digest.update(block)
        block.clear()

    chunks = request.stream()
    clock = asyncio.get_running_loop().time
    deadline = clock() + BODY_SECONDS
    while True:
        try:
            async with asyncio.timeout_at(min(clock() + STALL_SECONDS, deadline)):
                chunk = await anext(chunks, None)
        except TimeoutError as exc:
            why = f"No byte came for {STALL_SECONDS} s, or the file took longer than {BODY_SECONDS} s."
            raise HTTPException(408, f"{why} Send it again.") from exc
        if chunk is None:
            break
        size += len(chunk)
        if size > limit:
            raise _too_large(kind, limit)
        block += chunk
        if len(block) >= BLOCK_BYTES:
            await asyncio.to_thread(flush)
    if size == 0:
        raise _empty(kind)
    await asyncio.to_thread(flush)
    return digest.hexdigest(), size


def _refuse_early(request: Request, kind: FileKind, limit: int) -> None:
    """What the headers already say."""
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and int(announced) > limit:
        raise _too_large(kind, limit)
    if announced == "0":
        raise _empty(kind)
    if request.headers.get("content-type", "").startswith("multipart/"):
        code = "NOT_AN_IMAGE" if kind is FileKind.ID_IMAGE else "NOT_A_VIDEO"
        raise MediaRefused(code, "The body is a form. Send the file itself as the body (`curl --upload-file`).")


def _too_large(kind: FileKind, limit: int) -> MediaRefused:
    return MediaRefused("TOO_LARGE", f"The {kind} has more than {limit} bytes. Send a smaller file.")


def _empty(kind: FileKind) -> MediaRefused:
    return MediaRefused("EMPTY", f"The {kind} has no bytes. Send the file as the request's body.")
