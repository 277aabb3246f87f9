"""Tasks around one comparison: asking for it (session worker), computing and storing it (GPU worker)."""

import asyncio
import logging
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import UUID

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.runtime import flow_run
from sqlalchemy import Engine

from tasks.contracts import Comparison, EngineConfig, FaceComparison, StoredFile, comparison_key
from tasks.database import database_for
from tasks.database.attempts import get_attempt, note_comparison, waiting_for
from tasks.database.comparisons import begin_comparison, finish_comparison, get_comparison
from tasks.database.leases import Lease, renew
from tasks.dispatch import cancel, seen, start_comparison, wait_for_end, wake
from tasks.errors import (
    ComparisonCancelled,
    ComparisonFailed,
    LeaseHeld,
    LeaseLost,
    RetryableError,
    SessionCancelled,
)
from tasks.faces.models import measured
from tasks.leasing import owned
from tasks.liveness import in_worker
from tasks.retries import retried
from tasks.settings import current_settings
from tasks.storage import open_storage
from tasks.storage.files import fetch
from tasks.storage.keys import picture_key
from tasks.threads import in_own_thread

if TYPE_CHECKING:
    from tasks.faces.shown import ComparedFaces

log = logging.getLogger(__name__)

# A session with a process of its own. An idle worker has taken the comparison's run by then; one that queues may do so
# for long. How long it waits for a run that was taken, the settings say.
QUEUED_SECONDS = 5
# One beside others in its worker's process takes nothing but a place of the queue's limit, and another execution costs
# Prefect's server more than waiting does. Where nobody computes, the places must be free again after a while.
IN_WORKER_QUEUED_SECONDS, IN_WORKER_SECONDS = 60, 300

TURN_SECONDS = 120
"""How long a comparison lets another one compute that began before it."""
_turns = [threading.Lock()]
"""The last one is in force."""
_passing = threading.Lock()


async def compared(
    session_id: str, attempt: int, reference: StoredFile, probe: StoredFile, engine: EngineConfig
) -> Comparison | None:
    """The comparison of two files for an attempt: computed in this process where it has the engine, else asked for.

    Raises: as `compute_comparison` does where it is computed here, else as `request_comparison` does.
    """
    module = sys.modules.get("tasks.faces.engine")  # not imported: session workers without an engine cannot
    if module is None or not module.is_loaded(engine, current_settings()):
        return await request_comparison(session_id, attempt, reference, probe, engine)
    key = comparison_key(reference.sha256, probe.sha256, engine)
    return await in_own_thread(partial(compute_comparison, key, reference, probe, engine, (session_id, attempt)))


@task(name="request comparison", cache_policy=NO_CACHE, **retried(6))
async def request_comparison(
    session_id: str, attempt: int, reference: StoredFile, probe: StoredFile, engine: EngineConfig
) -> Comparison | None:
    """The comparison of two files: the stored row, or that of a `compare-faces` run started now and waited for.

    None when the run takes longer than a session waits for it: give up the place at the worker, and be woken.

    A run that ended by a fault that may pass is started again by the sweep. One that ended otherwise while this attempt
    waited for it is an error. Runs that ended before the attempt asked are passed over: their idempotency keys are
    spent, so each dispatch has its number.

    Raises:
        ComparisonFailed: its run ended without a row. ComparisonCancelled: somebody cancelled it.
        SessionCancelled: the attempt was cancelled or deleted meanwhile.
        OrchestratorUnavailable, DatabaseUnavailable: tried again first.
    """
    settings = current_settings()
    database = database_for(settings)
    key = comparison_key(reference.sha256, probe.sha256, engine)
    if (row := await asyncio.to_thread(get_comparison, database, key)) is not None:
        return row
    found = await asyncio.to_thread(get_attempt, database, session_id, attempt)
    run_id = found.comparison_run_id if found.comparison_key == key else None
    if run_id is None:
        run_id = await _dispatch(key, reference, probe, engine, settings.most_recoveries)
        by = f"flow run {flow_run.id}"
        if not await asyncio.to_thread(note_comparison, database, session_id, attempt, key, run_id, by=by):
            if not await asyncio.to_thread(waiting_for, database, key):
                await cancel(run_id, "Nobody waits for it")
            raise _closed_meanwhile(session_id, attempt)

    async def stored() -> bool:
        return await asyncio.to_thread(get_comparison, database, key) is not None

    patience = settings.comparison_patience_seconds
    queued, running = (IN_WORKER_QUEUED_SECONDS, IN_WORKER_SECONDS) if in_worker() else (QUEUED_SECONDS, patience)
    waited = await wait_for_end(run_id, stored, queued_seconds=queued, seconds=running)
    if (row := await asyncio.to_thread(get_comparison, database, key)) is not None:
        return row
    if waited is None or not (run := seen(waited)).spent(settings.most_recoveries):
        return None
    if run.type in {"CANCELLED", "CANCELLING"}:
        raise ComparisonCancelled(f"The comparison's flow run {run.id} was cancelled.")
    raise ComparisonFailed(
        f"Comparison {key[:12]} has no result: its flow run {run.id} was executed {run.run_count} times and ended as "
        f"{run.name}. Open it in the Prefect UI for the cause, then retry this one."
    )


def _closed_meanwhile(session_id: str, attempt: int) -> SessionCancelled:
    """What to raise when an attempt is not open any more."""
    return SessionCancelled(f"Attempt {attempt} of session {session_id!r} was closed meanwhile.")


async def _dispatch(
    key: str, reference: StoredFile, probe: StoredFile, engine: EngineConfig, most_recoveries: int
) -> UUID:
    """The first run of this comparison that goes on, or may: earlier ones ended for good."""
    dispatch = 1
    while True:
        run = seen(await start_comparison(key, dispatch, reference, probe, engine))
        if not run.spent(most_recoveries):
            return run.id
        dispatch += 1


@task(name="compute comparison", cache_policy=NO_CACHE, **retried(6))
def compute_comparison(
    key: str, reference: StoredFile, probe: StoredFile, engine: EngineConfig, asking: tuple[str, int] | None = None
) -> Comparison:
    """The stored comparison; computed now on this worker's device, and stored, if nobody has and nobody does.

    The lease of the comparison's key is held from the start of the computation until its row is stored.

    Args:
        asking: the session and attempt whose own flow run computes it.

    Raises:
        SessionCancelled: the attempt that asks was cancelled or deleted meanwhile.
        ObjectMissing, ObjectChanged: storage has not the bytes that were announced.
        ConfigurationError: weights are missing. LeaseHeld: another run has computed it for very long.
        StorageUnavailable, DatabaseUnavailable, ComputeUnavailable: tried again.
    """
    settings = current_settings()
    database = database_for(settings)
    if (row := get_comparison(database, key)) is not None:
        return row
    owner = flow_run.id or "outside a flow run"
    if asking is not None and not note_comparison(database, *asking, key, UUID(owner), by=f"flow run {owner}"):
        raise _closed_meanwhile(*asking)

    # Imported here: session workers import this module and have no engine.
    from tasks.faces.engine import load_engine

    storage = open_storage(settings)
    with tempfile.TemporaryDirectory(prefix="kycflow-") as name:
        folder = Path(name)
        fetch(storage, reference, folder / "reference")
        fetch(storage, probe, folder / "probe")
        loaded = load_engine(engine, settings)
        while True:
            with owned(database, f"comparison:{key}", owner, settings, settings.comparison_wait_seconds) as lease:
                if lease is None:  # somebody else had it
                    if (row := get_comparison(database, key)) is not None:
                        return row
                    continue
                try:
                    with _alone():
                        row = begin_comparison(database, lease, key, reference, probe, engine, by=f"flow run {owner}")
                        if row is not None:
                            return row
                        faces = loaded.compare(folder / "reference", folder / "probe", settings)
                    drawn = _drawn(faces, engine, key, folder)
                    kept = None if drawn is None else _kept(key, drawn, lease)
                    return store_comparison(key, lease, faces.comparison, kept)
                except LeaseLost:
                    break
    # It was taken from this run, which is taken for lost or is being cancelled: it never computes this one again.
    return _theirs(database, key, settings.comparison_wait_seconds)


@contextmanager
def _alone() -> Iterator[None]:
    """Compute one comparison at a time in this process: they share one device, and a crash in it is one comparison's.

    Files are fetched, pictures drawn, rows stored and Prefect is talked to side by side. One that is stuck in native
    code is passed by.
    """
    turn, end = _turns[-1], time.monotonic() + TURN_SECONDS
    while not turn.acquire(timeout=0.2):  # in short waits, between which a run can be stopped
        with _passing:
            if time.monotonic() > end and turn is _turns[-1]:
                log.warning("a comparison has computed for %d s: others go on beside it", TURN_SECONDS)
                _turns.append(threading.Lock())
        if turn is not _turns[-1]:
            turn, end = _turns[-1], time.monotonic() + TURN_SECONDS
    try:
        yield
    finally:
        turn.release()


def _theirs(database: Engine, key: str, seconds: float) -> Comparison:
    """The row that another run computes, when it is there."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if (row := get_comparison(database, key)) is not None:
            return row
        time.sleep(1)
    raise LeaseHeld(f"Comparison {key[:12]} was taken over, and there is no result after {seconds:.0f} s.")


def _drawn(faces: "ComparedFaces", engine: EngineConfig, key: str, folder: Path) -> Path | None:
    """The reviewers' picture as a file; None when there is nothing that could be shown."""
    from tasks.faces.picture import report

    if faces.card_pixels is None:
        return None
    known = measured(engine.recogniser, engine.detector)
    thresholds = known.thresholds if known else None
    picture = folder / "faces.jpg"
    picture.write_bytes(report(faces, thresholds, known, caption=f"comparison {key[:12]}"))
    return picture


def _kept(key: str, picture: Path, lease: Lease) -> str | None:
    """The picture's key, once it is stored. None if that cannot be: a picture is not worth a second computation."""
    try:
        return store_picture(key, picture, lease)
    except RetryableError:
        log.exception("comparison without a picture", extra={"action": "picture.lost", "comparison_key": key})
        return None


# Tasks of their own: storage or a database that is away for a moment costs no second computation.
@task(name="store picture", cache_policy=NO_CACHE, **retried(7))
def store_picture(key: str, picture: Path, lease: Lease) -> str:
    """Put the reviewers' picture into storage; its key.

    Raises:
        LeaseLost: somebody else owns the comparison. StorageUnavailable, DatabaseUnavailable: tried again.
    """
    settings = current_settings()
    if not renew(database_for(settings), lease, settings.lease_seconds):
        raise LeaseLost(f"{lease.name} was taken over: its picture is not stored.")
    open_storage(settings).put(picture_key(key), picture)
    return picture_key(key)


@task(name="store comparison", cache_policy=NO_CACHE, **retried(7))
def store_comparison(key: str, lease: Lease, result: FaceComparison, picture: str | None) -> Comparison:
    """Store the row under its unique key and the lease's token; the row that is there.

    Raises:
        LeaseLost: somebody else owns the comparison. DatabaseUnavailable: tried again.
    """
    by = f"flow run {flow_run.id}"
    return finish_comparison(database_for(current_settings()), lease, key, result=result, picture_key=picture, by=by)


@task(name="wake sessions", cache_policy=NO_CACHE, **retried(3))
def wake_sessions(key: str) -> int:
    """Wake the sessions' runs that wait for this comparison without a process; how many attempts have asked for it.

    Raises:
        OrchestratorUnavailable, DatabaseUnavailable: tried again. After that the sweep wakes them.
    """
    attempts = waiting_for(database_for(current_settings()), key)
    runs = [attempt.flow_run_id for attempt in attempts if attempt.flow_run_id is not None]
    asyncio.run(_wake(runs))
    return len(attempts)


async def _wake(flow_run_ids: list[UUID]) -> None:
    for flow_run_id in flow_run_ids:
        await wake(flow_run_id, "The comparison has ended")
