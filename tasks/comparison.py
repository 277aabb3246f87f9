"""Tasks around one comparison: computing and storing it, once, whoever else wants the same one."""

import asyncio
import logging
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.runtime import flow_run

from tasks.caching import cached
from tasks.contracts import Attempt, Comparison, EngineConfig, FaceComparison, StoredFile, comparison_key
from tasks.database import database_for
from tasks.database.attempts import note_comparison, waiting_for
from tasks.database.comparisons import begin_comparison, finish_comparison, get_comparison
from tasks.database.leases import Lease, comparison_lease, renew
from tasks.dispatch import wake
from tasks.errors import ConfigurationError, KycflowError, LeaseHeld, LeaseLost, RetryableError, SessionCancelled
from tasks.faces.models import measured
from tasks.judgement import thresholds_for
from tasks.leasing import owned
from tasks.retries import patiently, retried
from tasks.settings import Settings, current_settings
from tasks.states import AWAITING_COMPARISON
from tasks.storage import open_storage
from tasks.storage.files import fetch
from tasks.storage.keys import COMPARISON_RESULTS, picture_key
from tasks.threads import in_own_thread

if TYPE_CHECKING:
    from tasks.faces.engine import FaceEngine
    from tasks.faces.shown import ComparedFaces

log = logging.getLogger(__name__)

PATIENCE_SECONDS = 5
"""How long a session keeps its place at a worker while another session's run computes the same comparison."""
TURN_SECONDS = 120
"""How long a comparison lets another one compute that began before it."""
_turns = [threading.Lock()]
"""The last one is in force."""
_passing = threading.Lock()


async def compared(
    session_id: str, attempt: int, reference: StoredFile, probe: StoredFile, engine: EngineConfig
) -> Comparison | None:
    """The comparison of two files for an attempt, by the task `compute comparison` in a thread of its own.

    None when another session's run computes it, and takes long: give up the place at the worker, and be woken. Whatever
    its own end, the sessions that wait for the same comparison are woken.

    Raises: as `compute_comparison` does.
    """
    key = comparison_key(reference.sha256, probe.sha256, engine)
    asked = (key, reference, probe, engine, session_id, attempt)
    elsewhere = False
    try:
        name = await in_own_thread(partial(compute_comparison, *asked))
        row = await _row(key)
        if name is not None and row is None:
            # Kept by Prefect's cache, and not in the database any more: an older one was restored.
            await in_own_thread(partial(compute_comparison.with_options(refresh_cache=True), *asked))
            row = await _row(key)
        elsewhere = row is None
        return row
    finally:
        if not elsewhere:
            await wake_waiting(key)


async def compared_before(decided: Attempt, key: str) -> Comparison | None:
    """The comparison that a decision rests on, told once more by its task. None, and no task, if it was erased."""
    row, files = await _row(key), decided.files
    if row is None or files.id_image is None or files.selfie_video is None:
        return None
    asked = (key, files.id_image, files.selfie_video, row.engine, decided.session_id, decided.attempt)
    await in_own_thread(partial(compute_comparison, *asked))
    return row


async def _row(key: str) -> Comparison | None:
    return await patiently(6, lambda: asyncio.to_thread(get_comparison, database_for(current_settings()), key))


async def wake_waiting(key: str) -> None:
    """Wake the sessions' runs that wait for a comparison, as it is stored, or nobody computes it any more.

    Never raises: the sweep wakes them, too.
    """
    try:
        asked = await asyncio.to_thread(waiting_for, database_for(current_settings()), key)
        own = flow_run.id
        others = [one.flow_run_id for one in asked if one.flow_run_id is not None and str(one.flow_run_id) != own]
        if others:
            await wake(others, [AWAITING_COMPARISON], "Its comparison is there, or free")
    except KycflowError as exc:
        log.warning("sessions not woken; the sweep will: %s", exc, extra={"action": "comparison.not_woken"})


@task(name="compute comparison", **cached(COMPARISON_RESULTS, "key"), **retried(6))
def compute_comparison(
    key: str, reference: StoredFile, probe: StoredFile, engine: EngineConfig, session_id: str, attempt: int
) -> str | None:
    """The key, once its comparison is stored: computed now on this worker's device if nobody has and nobody does.

    None, which is not cached, when another run computes it, and takes long, or has taken it over from this one. The
    lease of the comparison's key is held from the start of the computation until its row is stored.

    Raises:
        SessionCancelled: the attempt that asks was cancelled or deleted meanwhile.
        ObjectMissing, ObjectChanged: storage has not the bytes that were announced.
        ConfigurationError: weights are missing.
        StorageUnavailable, DatabaseUnavailable, ComputeUnavailable: tried again.
    """
    settings = current_settings()
    database = database_for(settings)
    if get_comparison(database, key) is not None:
        return key
    owner = flow_run.id or "outside a flow run"
    if not note_comparison(database, session_id, attempt, key, by=f"flow run {owner}"):
        raise SessionCancelled(f"Attempt {attempt} of session {session_id!r} was closed meanwhile.")

    # Imported here: what deploys the flow has no engine.
    from tasks.faces.engine import load_engine

    storage = open_storage(settings)
    with tempfile.TemporaryDirectory(prefix="kycflow-") as name:
        folder = Path(name)
        fetch(storage, reference, folder / "reference")
        fetch(storage, probe, folder / "probe")
        loaded = load_engine(engine, settings)
        try:
            while True:
                with owned(database, comparison_lease(key), owner, settings, PATIENCE_SECONDS) as lease:
                    if lease is not None:
                        _compute(loaded, lease, key, reference, probe, engine, folder)
                        return key
                # Somebody else had it.
                if get_comparison(database, key) is not None:
                    return key
        except LeaseHeld:
            return None
        except LeaseLost:
            # This run is taken for lost, or is being cancelled. If neither, it waits for the one that took it.
            return None if get_comparison(database, key) is None else key


def _compute(
    loaded: "FaceEngine",
    lease: Lease,
    key: str,
    reference: StoredFile,
    probe: StoredFile,
    engine: EngineConfig,
    folder: Path,
) -> None:
    """Compare the two files in the folder, and store the row and the reviewers' picture.

    Raises:
        LeaseLost: somebody else owns the comparison by now. Nothing is stored.
    """
    settings = current_settings()
    by = f"flow run {flow_run.id}"
    with _alone():
        if begin_comparison(database_for(settings), lease, key, reference, probe, engine, by=by) is not None:
            return
        faces = loaded.compare(folder / "reference", folder / "probe", settings)
    drawn = _drawn(faces, engine, key, folder, settings)
    kept = None if drawn is None else _kept(key, drawn, lease)
    store_comparison(key, lease, faces.comparison, kept)


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


def _drawn(faces: "ComparedFaces", engine: EngineConfig, key: str, folder: Path, settings: Settings) -> Path | None:
    """The reviewers' picture as a file; None when there is nothing that could be shown.

    The sessions that share it may be judged by other thresholds, later. It says that its own are those in force now.
    """
    from tasks.faces.picture import report

    if faces.card_pixels is None:
        return None
    known = measured(engine.recogniser, engine.detector)
    try:
        thresholds = thresholds_for(settings)
    except ConfigurationError:  # without thresholds there is no decision, but what was measured can be seen
        thresholds = None
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


# Tasks of their own: storage or a database that is away for a moment costs no second computation. Without results, as
# those hold scores.
@task(name="store picture", cache_policy=NO_CACHE, persist_result=False, **retried(7))
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


@task(name="store comparison", cache_policy=NO_CACHE, persist_result=False, **retried(7))
def store_comparison(key: str, lease: Lease, result: FaceComparison, picture: str | None) -> Comparison:
    """Store the row under its unique key and the lease's token; the row that is there.

    Raises:
        LeaseLost: somebody else owns the comparison. DatabaseUnavailable: tried again.
    """
    by = f"flow run {flow_run.id}"
    return finish_comparison(database_for(current_settings()), lease, key, result=result, picture_key=picture, by=by)
