"""A database and a Prefect server as version 0.1.0 left them, with sessions in flight, are brought over."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar
from uuid import UUID

import pytest
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.objects import State
from prefect.exceptions import ObjectNotFound
from prefect.states import Completed, Pending, Running, Scheduled
from sqlalchemy import Engine, text

from deployments.demo_media import DemoMedia
from tasks.contracts import FileKind, StoredFile, comparison_key
from tasks.database.attempts import (
    get_attempt,
    note_comparison,
    note_run,
    open_attempt,
    record_decision,
    register_upload,
)
from tasks.database.engine import close_databases, writing
from tasks.faces.models import engine_config
from tasks.settings import Settings
from tasks.storage import open_storage
from tasks.storage.files import hash_file
from tasks.storage.keys import new_file_key
from tests.attempts import MATCH
from tests.integration.test_schema import old_database
from tests.prefect_server import prefect_server
from tests.system import DECISION_SECONDS, System, eventually, kycflow_up

T = TypeVar("T")
WAITS, COMPARES, LOST, UNTOLD, DECIDED = "waits", "compares", "lost", "untold", "decided"


def store(settings: Settings, database: Engine, session_id: str, kind: FileKind, path: Path) -> StoredFile:
    key = new_file_key(session_id, 1, kind)
    open_storage(settings).put(key, path)
    sha256, size_bytes = hash_file(path)
    stored = StoredFile(storage_key=key, sha256=sha256, size_bytes=size_bytes)
    register_upload(database, session_id, 1, kind, stored)
    return stored


def ask(address: str, call: Callable[[PrefectClient], Awaitable[T]]) -> T:
    async def asked() -> T:
        async with PrefectClient(address) as client:
            return await call(client)

    return asyncio.run(asked())


class OldServer:
    """A Prefect server, set up by hand as `kycflow deploy` of 0.1.0 did for workers of type process."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.deployments = ask(address, self._deploy)

    async def _deploy(self, client: PrefectClient) -> dict[str, UUID]:
        for pool in ("sessions", "gpu"):
            await client.create_work_pool(WorkPoolCreate(name=pool, type="resident"))
        await client.create_work_queue("upkeep", work_pool_name="sessions")
        found = {}
        for name, pool, tag in (
            ("verify-session", "sessions", "session"),
            ("compare-faces", "gpu", "comparison"),
            ("sweep-sessions", "sessions", "upkeep"),
        ):
            flow = await client.create_flow_from_name(name)
            module = name.replace("-", "_")
            found[name] = await client.create_deployment(
                flow,
                name=name,
                work_pool_name=pool,
                entrypoint=f"flows.{module}.{module}",
                tags=["kycflow", tag],
                version="0.1.0",
            )
        return found

    def run(self, deployment: str, name: str, key: str, parameters: dict[str, Any], *states: State[Any]) -> UUID:
        """A flow run that was created in the first of these states, and has come to the last."""

        async def make(client: PrefectClient) -> UUID:
            run = await client.create_flow_run_from_deployment(
                self.deployments[deployment], parameters=parameters, idempotency_key=key, name=name, state=states[0]
            )
            for state in states[1:]:
                await client.set_flow_run_state(run.id, state, force=True)
            return run.id

        return ask(self.address, make)

    def session_run(self, session_id: str, *states: State[Any]) -> UUID:
        given = {"session_id": session_id, "attempt": 1}
        return self.run("verify-session", f"{session_id} attempt 1", f"{session_id}:1", given, *states)


@pytest.fixture
def old(tmp_path: Path, demo_media: DemoMedia, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The state folder that version 0.1.0 left."""
    folder = tmp_path / "state"
    folder.mkdir()
    monkeypatch.setenv("KYCFLOW_STATE_DIR", str(folder))
    settings = Settings()
    database = old_database(settings.database, "0003")
    card, video = demo_media.genuine_card, demo_media.selfie_video
    later = datetime.now(UTC) + timedelta(hours=1)
    for name in (WAITS, COMPARES, LOST, UNTOLD, DECIDED):
        open_attempt(database, name, 1, 3600)
    store(settings, database, WAITS, FileKind.ID_IMAGE, card)
    pairs = {
        name: (
            store(settings, database, name, FileKind.ID_IMAGE, demo_media.impostor_card if name == COMPARES else card),
            store(settings, database, name, FileKind.SELFIE_VIDEO, video),
        )
        for name in (COMPARES, LOST, DECIDED)
    }
    record_decision(database, DECIDED, 1, verdict=MATCH, files=get_attempt(database, DECIDED).files)
    key = comparison_key(pairs[COMPARES][0].sha256, pairs[COMPARES][1].sha256, engine_config(settings))
    note_comparison(database, COMPARES, 1, key, by="session")
    with prefect_server(folder / "prefect") as address:
        server = OldServer(address)
        waits: State[Any] = Scheduled(name="AwaitingFiles", scheduled_time=later, message="SELFIE_VIDEO_MISSING")
        compares: State[Any] = Scheduled(name="AwaitingComparison", scheduled_time=later)
        note_run(database, WAITS, 1, server.session_run(WAITS, waits), by="upload service")
        note_run(database, COMPARES, 1, server.session_run(COMPARES, Running(), compares), by="upload service")
        note_run(database, LOST, 1, server.session_run(LOST, Pending(), Running()), by="upload service")
        decided = server.session_run(DECIDED, Running(), Completed(name="Match"))
        note_run(database, DECIDED, 1, decided, by="upload service")
        parameters = dict(zip(("reference", "probe"), (file.model_dump() for file in pairs[COMPARES]), strict=True))
        comparison = server.run("compare-faces", "comparison", f"{key}:1", parameters, Pending(), Running())
    with writing(database) as session:
        of = {"run": str(comparison), "name": COMPARES}
        session.execute(text("UPDATE attempts SET comparison_run_id = :run WHERE session_id = :name"), of)
    close_databases()
    return folder


def test_sessions_in_flight_of_version_0_1_0_are_decided(old: Path, demo_media: DemoMedia, weights: list[Path]) -> None:
    with kycflow_up(old, weights[0].parent) as system, system.client() as client:
        # Those that had all they needed go on by themselves.
        assert client.wait(COMPARES, DECISION_SECONDS)["decision"] == "no_match"
        assert client.wait(LOST, DECISION_SECONDS)["decision"] == "match"
        assert client.session(DECIDED)["decision"] == "match"
        (waits,) = system.session_runs(WAITS)
        assert (waits.state_name, waits.work_pool_name) == ("AwaitingFiles", "gpu")
        assert waits.expected_start_time is not None
        assert waits.expected_start_time.timestamp() <= datetime.now(UTC).timestamp(), "It is seen in run lists."
        client.upload(WAITS, "selfie_video", demo_media.selfie_video)
        assert client.wait(WAITS, DECISION_SECONDS)["decision"] == "match"
        # One that never had a file had no flow run.
        (untold,) = eventually(lambda: system.session_runs(UNTOLD) or None)
        assert untold.state_name == "AwaitingFiles"
        ended = [
            system.ended_run(run.id) for one in (COMPARES, LOST, WAITS, DECIDED) for run in system.session_runs(one)
        ]
        assert [run.state_name for run in ended] == ["NoMatch", "Match", "Match", "Match"]
        assert left_over(system) == []
        system.database.dispose()


def left_over(system: System) -> list[str]:
    """What of version 0.1.0 is still at Prefect's server."""

    async def look(client: PrefectClient) -> list[str]:
        found = []
        try:
            await client.read_deployment_by_name("compare-faces/compare-faces")
            found.append("compare-faces")
        except ObjectNotFound:
            pass
        return found + [pool.name for pool in await client.read_work_pools() if pool.name not in ("gpu", "upkeep")]

    return system.prefect(look)
