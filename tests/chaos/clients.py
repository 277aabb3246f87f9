"""The clients of a chaos run: each uploads by its plan, and sends again until it is told that its file is stored."""

import asyncio
import random
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock
from typing import Any

from prefect.settings import temporary_settings

from deployments.client import UploadClient
from deployments.prefect_access import client_settings
from tasks.database import database_for
from tasks.database.attempts import get_attempt
from tasks.errors import ConfigurationError, KycflowError, Refused, ServiceUnavailable
from tasks.trigger import trigger
from tests.chaos.plan import PlannedSession, Upload
from tests.chaos.world import World

GIVE_UP_SECONDS = 300
"""After the end of the longest outage."""


class Clients:
    """Sends what is planned, in threads."""

    def __init__(self, world: World, media: Callable[[PlannedSession], dict[str, Path]], longest_outage: float) -> None:
        self._world, self._media, self._give_up_seconds = world, media, longest_outage + GIVE_UP_SECONDS
        self.last_upload: dict[str, float] = {}
        """Unix time at which a session's last file was stored."""
        self.refusals = 0
        self._lock = Lock()

    def run(self, sessions: tuple[PlannedSession, ...], began: float) -> None:
        """Until every file of every session is stored."""
        with ThreadPoolExecutor(len(sessions)) as pool:
            for done in [pool.submit(self._follow, session, began) for session in sessions]:
                done.result()

    def _follow(self, session: PlannedSession, began: float) -> None:
        files = self._media(session)
        for upload in sorted(session.uploads, key=lambda one: one.after_seconds):
            time.sleep(max(0.0, began + upload.after_seconds - time.monotonic()))
            with ThreadPoolExecutor(upload.times) as pool:
                for sent in [pool.submit(self._send, session, upload, files[upload.kind]) for _ in range(upload.times)]:
                    sent.result()
        if session.extra_triggers:
            self._trigger(session)

    def _send(self, session: PlannedSession, upload: Upload, path: Path) -> None:
        with UploadClient(self._world.stack.addresses.upload_api, self._world.settings) as client:
            self._until(lambda: client.create_session(session.session_id))
            try:
                self._until(lambda: client.upload(session.session_id, upload.kind, path))
            except Refused as exc:
                # The other one of a doubled upload was so slow that the session was decided meanwhile.
                if exc.code != "SESSION_DECIDED":
                    raise
                return
        self.last_upload[session.session_id] = time.time()

    def _until(self, call: Callable[[], Any]) -> None:
        deadline = time.monotonic() + self._give_up_seconds
        while True:
            try:
                call()
            except (ServiceUnavailable, ConfigurationError):
                if time.monotonic() > deadline:
                    raise
                with self._lock:
                    self.refusals += 1
                time.sleep(random.uniform(0.5, 1.5))
            else:
                return

    def _trigger(self, session: PlannedSession) -> None:
        """Tell Prefect several times at once, as several upload services would."""

        async def tell() -> None:
            attempt = await asyncio.to_thread(get_attempt, database_for(self._world.settings), session.session_id)
            await asyncio.gather(*(trigger(attempt) for _ in range(session.extra_triggers)), return_exceptions=True)

        try:
            with temporary_settings(client_settings(self._world.settings, self._world.stack.addresses)):
                asyncio.run(tell())
        except KycflowError:
            return  # one of the faults; the sweep tells Prefect
