"""`make bench-waiting`: what many sessions that wait for their video cost the workers, and one look of the sweep."""

import asyncio
import json
import os
import statistics
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import httpx
import psutil
import psycopg
import pytest
import typer
from prefect.settings import temporary_settings
from psycopg import sql
from rich.console import Console
from rich.progress import track
from rich.table import Table
from sqlalchemy import event, update

from deployments.prefect_access import client_settings
from deployments.stack import Stack
from tasks.contracts import FileKind, StoredFile
from tasks.database import database_for
from tasks.database.attempts import open_attempt, register_upload
from tasks.database.engine import writing
from tasks.database.tables import AttemptRow
from tasks.settings import Settings
from tasks.storage.keys import new_file_key
from tasks.sweep.findings import Looker
from tasks.trigger import trigger
from tests.chaos.postgresql import postgresql, serve_everything

PARTS = ("worker-upkeep", "worker-gpu", "prefect-server", "upload-service")
WATCH_SECONDS = 60


@dataclass(frozen=True)
class Cost:
    """Of one part, its flow runs included."""

    mib: float
    """Resident memory at the end, MiB."""
    cpu_seconds: float
    """Spent in WATCH_SECONDS."""


@dataclass(frozen=True)
class Look:
    """Of one look of the sweep, medians of five."""

    seconds: float
    queries: int
    api_calls: int


def main(
    sessions: Annotated[int, typer.Option(help="How many wait.")] = 10_000,
    embedded: Annotated[bool, typer.Option("--sqlite", help="SQLite for both databases.")] = False,
) -> None:
    """Measure an idle system, let sessions wait in it, and measure again."""
    console = Console(highlight=False)
    own = Settings()
    with TemporaryDirectory(prefix="kycflow-") as name, ExitStack() as exits:
        patch = exits.enter_context(pytest.MonkeyPatch.context())
        patch.setenv("KYCFLOW_STATE_DIR", name)
        patch.setenv("KYCFLOW_MODELS_FOLDER", str(own.weights_dir))
        if not embedded:
            cluster = exits.enter_context(postgresql())
            serve_everything(cluster, patch)
        measured = Settings()
        stack = exits.enter_context(Stack(measured))
        exits.enter_context(temporary_settings(client_settings(measured, stack.addresses)))
        time.sleep(WATCH_SECONDS / 2)  # the first sweeps, and what starting leaves behind
        before, first = _costs(stack), _look()
        began = time.monotonic()
        _wait_for_videos(sessions, None if embedded else cluster.url("prefect"))
        created = time.monotonic() - began
        time.sleep(WATCH_SECONDS / 2)
        after, last = _costs(stack), _look()
    table = Table("", "nobody waits", f"{sessions} wait", box=None, pad_edge=False)
    for part in PARTS:
        table.add_row(f"{part}, memory", f"{before[part].mib:.0f} MiB", f"{after[part].mib:.0f} MiB")
        table.add_row(
            f"{part}, CPU in {WATCH_SECONDS} s", f"{before[part].cpu_seconds:.1f} s", f"{after[part].cpu_seconds:.1f} s"
        )
    table.add_row("one look of the sweep", f"{first.seconds * 1000:.0f} ms", f"{last.seconds * 1000:.0f} ms")
    table.add_row("its SQL queries", str(first.queries), str(last.queries))
    table.add_row("its calls of Prefect's API", str(first.api_calls), str(last.api_calls))
    console.print(table)
    backend = "SQLite" if embedded else "PostgreSQL"
    console.print(f"{backend}; creating {sessions} sessions took {created:.0f} s; {os.cpu_count()} cores")
    folder = own.state_dir / "bench"
    folder.mkdir(parents=True, exist_ok=True)
    found: dict[str, Any] = {"backend": backend, "sessions": sessions, "created_seconds": created}
    for when, costs, looked in (("before", before, first), ("after", after, last)):
        found[when] = {"sweep": asdict(looked)} | {part: asdict(cost) for part, cost in costs.items()}
    (folder / f"waiting-{backend.lower()}.json").write_text(json.dumps(found, indent=2))


def _wait_for_videos(count: int, prefect_url: str | None) -> None:
    """Sessions whose ID image is recorded and whose video never comes; each has its flow run in AwaitingFiles.

    The first run is made as the upload service makes it. Through the API the others would take a quarter of an hour:
    on PostgreSQL they are copies of its rows.
    """
    for number in track(range(count), description="sessions"):
        attempt = _session(f"waits-{number}")
        if number == 0 or prefect_url is None:
            asyncio.run(trigger(attempt))
    if prefect_url is not None:
        _copy_runs(prefect_url, count)


def _copy_runs(prefect_url: str, count: int) -> None:
    with psycopg.connect(prefect_url) as connection:

        def columns(table: str, *without: str) -> list[str]:
            query = (
                "SELECT column_name FROM information_schema.columns WHERE table_name = %s AND is_generated = 'NEVER'"
            )
            return [name for (name,) in connection.execute(query, [table]) if name not in without]

        def listed(names: list[str], table: str) -> tuple[sql.Composed, sql.Composed]:
            comma = sql.SQL(", ")
            return comma.join(map(sql.Identifier, names)), comma.join(sql.Identifier(table, name) for name in names)

        into, of_run = listed(columns("flow_run", "id", "name", "idempotency_key", "parameters", "state_id"), "first")
        connection.execute(
            sql.SQL("""INSERT INTO flow_run (id, name, idempotency_key, parameters, {into})
            SELECT gen_random_uuid(), 'waits-' || n || ' attempt 1', 'waits-' || n || ':1',
                json_build_object('session_id', 'waits-' || n, 'attempt', 1), {of_run}
            FROM flow_run AS first, generate_series(1, {last}) AS n WHERE first.name = 'waits-0 attempt 1'""").format(
                into=into, of_run=of_run, last=sql.Literal(count - 1)
            )
        )
        into, of_state = listed(columns("flow_run_state", "id", "flow_run_id"), "first")
        connection.execute(
            sql.SQL("""INSERT INTO flow_run_state (id, flow_run_id, {into})
            SELECT gen_random_uuid(), flow_run.id, {of_state} FROM flow_run, flow_run_state AS first
            WHERE flow_run.state_id IS NULL AND flow_run.name LIKE 'waits-%'
            AND first.id = (SELECT state_id FROM flow_run WHERE name = 'waits-0 attempt 1')""").format(
                into=into, of_state=of_state
            )
        )
        connection.execute(
            """UPDATE flow_run SET state_id = flow_run_state.id FROM flow_run_state
            WHERE flow_run_state.flow_run_id = flow_run.id AND flow_run.state_id IS NULL"""
        )
        runs = connection.execute("SELECT name, id FROM flow_run WHERE name LIKE 'waits-%'").fetchall()
    with writing(database_for(Settings())) as session:
        named = [{"session_id": name.split()[0], "attempt": 1, "flow_run_id": str(run)} for name, run in runs]
        session.execute(update(AttemptRow), named)


def _session(session_id: str) -> Any:
    database = database_for(Settings())
    open_attempt(database, session_id, 1, 86_400)
    stored = StoredFile(storage_key=new_file_key(session_id, 1, FileKind.ID_IMAGE), sha256="0" * 64, size_bytes=1)
    return register_upload(database, session_id, 1, FileKind.ID_IMAGE, stored)


def _costs(stack: Stack) -> dict[str, Cost]:
    """Flow runs are processes of their workers' trees, and are gone before the end: they are sampled."""
    parts = {part: psutil.Process(stack.pid(part)) for part in PARTS}
    spent = {part: _cpu(process) for part, process in parts.items()}
    children: dict[str, dict[int, float]] = {part: {} for part in PARTS}
    deadline = time.monotonic() + WATCH_SECONDS
    first: dict[int, float] = {}
    while time.monotonic() < deadline:
        for part, process in parts.items():
            for child in process.children(recursive=True):
                try:
                    now = _cpu(child)
                except psutil.NoSuchProcess:
                    continue
                first.setdefault(child.pid, now if child.create_time() < time.time() - 2 else 0.0)
                children[part][child.pid] = now - first[child.pid]
        time.sleep(0.5)
    return {
        part: Cost(process.memory_info().rss / 2**20, _cpu(process) - spent[part] + sum(children[part].values()))
        for part, process in parts.items()
    }


def _cpu(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def _look() -> Look:
    database = database_for(Settings())
    taken: list[tuple[float, int, int]] = []
    for _ in range(5):
        with _counted(database) as counts:
            began = time.perf_counter()
            asyncio.run(Looker().look())
            taken.append((time.perf_counter() - began, counts["queries"], counts["calls"]))
    seconds, queries, calls = (statistics.median(column) for column in zip(*taken, strict=True))
    return Look(seconds, int(queries), int(calls))


@contextmanager
def _counted(database: Any) -> Iterator[dict[str, int]]:
    counts = {"queries": 0, "calls": 0}

    def query(*_: object) -> None:
        counts["queries"] += 1

    send = httpx.AsyncClient.send

    async def counted(self: httpx.AsyncClient, *arguments: Any, **options: Any) -> httpx.Response:
        counts["calls"] += 1
        return await send(self, *arguments, **options)

    event.listen(database, "before_cursor_execute", query)
    httpx.AsyncClient.send = counted  # type: ignore[method-assign]
    try:
        yield counts
    finally:
        httpx.AsyncClient.send = send  # type: ignore[method-assign]
        event.remove(database, "before_cursor_execute", query)


if __name__ == "__main__":
    typer.run(main)
