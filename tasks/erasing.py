"""Erases what was kept of an attempt: media, crops, scores, and what Prefect holds of them. The audit trail stays.

Each step is safe to repeat, and to do twice at once. The row that says what is erased is written last: what was
interrupted is still due, and the next purge does the rest.
"""

import asyncio
import time
from contextlib import suppress
from pathlib import PurePosixPath

from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.filters import (
    ArtifactFilter,
    ArtifactFilterKey,
    FlowFilter,
    FlowFilterName,
    FlowRunFilter,
    FlowRunFilterName,
)
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.exceptions import ObjectNotFound

from tasks.contracts import Attempt, FileKind, Plain
from tasks.database import database_for
from tasks.database.leases import comparison_lease, release
from tasks.database.retention import Erasable, attempts_of, begin_erasing, finish_erasing, forget_comparison
from tasks.dispatch import PAGE, VERIFY_SESSION, cancel, prefect_api, read_runs, seen
from tasks.errors import RetryableError
from tasks.leasing import owned
from tasks.settings import current_settings
from tasks.storage import Storage, open_storage
from tasks.storage.keys import COMPARISON_RESULTS, SESSION_RESULTS, file_prefix, picture_key

PAUSE_SECONDS = 0.5
ENDING_SECONDS = 10
"""How long is waited for a flow run to end that somebody left behind."""


class Erased(Plain):
    """How much was erased. What was gone already does not count."""

    attempts: int = 0
    objects: int = 0
    comparisons: int = 0
    runs: int = 0

    def __add__(self, other: "Erased") -> "Erased":
        return Erased(
            attempts=self.attempts + other.attempts,
            objects=self.objects + other.objects,
            comparisons=self.comparisons + other.comparisons,
            runs=self.runs + other.runs,
        )


async def erase_session(session_id: str, *, by: str) -> Erased:
    """Erase all attempts of a session. See `erase_attempt`; mark them deleted first, for their decisions to go, too.

    Raises:
        StorageUnavailable, DatabaseUnavailable, OrchestratorUnavailable, LeaseHeld, RetryableError: not all is erased.
    """
    erased = Erased()
    for attempt in await asyncio.to_thread(attempts_of, database_for(current_settings()), session_id):
        erased += await erase_attempt(session_id, attempt, by=by)
    return erased


async def erase_attempt(session_id: str, attempt: int, *, by: str) -> Erased:
    """Erase an attempt's media, cached results and Prefect's copies, and the crops and scores that no other one needs.

    Its decision stays without its score, unless the attempt is deleted. One that somebody is at work on is left alone.

    Args:
        by: who or what asks for it, for the audit trail.

    Raises:
        StorageUnavailable, DatabaseUnavailable, OrchestratorUnavailable: not all is erased; the next purge goes on.
        LeaseHeld: its comparison is being computed. RetryableError: its flow run does not end. Likewise.
    """
    settings = current_settings()
    database, storage = database_for(settings), open_storage(settings)
    begun = await asyncio.to_thread(begin_erasing, database, session_id, attempt, by=by)
    if begun is None:
        return Erased()
    media = _folder(file_prefix(session_id, attempt, FileKind.ID_IMAGE))
    results = SESSION_RESULTS.format(session_id=session_id, attempt=attempt)
    objects = [await asyncio.to_thread(delete_objects, storage, folder) for folder in (media, results)]
    erased = Erased(objects=sum(objects))
    for key in begun.comparison_keys:
        erased += await asyncio.to_thread(erase_comparison, key, by=by, besides=begun.attempt)
    erased += Erased(runs=await _erase_from_prefect(begun))
    finished = await asyncio.to_thread(finish_erasing, database, session_id, attempt, by=by)
    return erased + Erased(attempts=int(finished))


def erase_comparison(key: str, *, by: str, besides: Attempt | None = None) -> Erased:
    """Erase a comparison's row and its picture, unless an attempt needs them. Nobody computes it meanwhile.

    Args:
        besides: an attempt whose need does not count, as it is being erased.

    Raises:
        LeaseHeld: it is being computed. StorageUnavailable, DatabaseUnavailable, LeaseLost.
    """
    settings = current_settings()
    database = database_for(settings)
    while True:
        with owned(database, comparison_lease(key), by, settings, settings.lease_seconds) as lease:
            if lease is None:  # somebody has computed it meanwhile
                continue
            rows = forget_comparison(database, lease, key, besides=besides)
            if rows is None:
                return Erased()
            # After the row, so that nobody finds a row whose picture is gone.
            storage, results = open_storage(settings), COMPARISON_RESULTS.format(key=key)
            objects = delete_objects(storage, _folder(picture_key(key))) + delete_objects(storage, results)
            # Whoever still holds an old token can only write what the key stands for.
            release(database, lease, forget=True)
            return Erased(objects=objects, comparisons=rows)


def delete_objects(storage: Storage, prefix: str) -> int:
    """Delete all objects whose keys begin so; how many. Raises StorageUnavailable, ConfigurationError."""
    count = 0
    for stored in storage.listing(prefix):
        storage.delete(stored.key)
        count += 1
    return count


def _folder(key: str) -> str:
    """What the keys of an object, or of objects of a kind, and of all that lies beside them begin with."""
    return f"{PurePosixPath(key).parent}/"


async def _erase_from_prefect(begun: Erasable) -> int:
    """Delete an attempt's flow runs, whose states tell its score, and its artifacts; how many runs.

    Raises:
        RetryableError: a run does not end. OrchestratorUnavailable, ConfigurationError: see `prefect_api`.
    """
    count = 0
    async with prefect_api() as client:
        while runs := await _runs(client, begun):
            for run in runs:
                await _ended(client, run)
                with suppress(ObjectNotFound):
                    await client.delete_flow_run(run.id)
                    count += 1
        await _delete_artifacts(client, begun.attempt)
    return count


async def _runs(client: PrefectClient, begun: Erasable) -> list[FlowRun]:
    """That which is known by its id, and those that a person started, which have the same name."""
    found = begun.attempt
    flow = FlowFilter(name=FlowFilterName(any_=[VERIFY_SESSION.split("/", maxsplit=1)[0]]))
    named = FlowRunFilter(name=FlowRunFilterName(any_=[f"{found.session_id} attempt {found.attempt}"]))
    runs = await client.read_flow_runs(flow_filter=flow, flow_run_filter=named, limit=PAGE)
    if begun.flow_run_id is None or begun.flow_run_id in {run.id for run in runs}:
        return runs
    return runs + await read_runs(client, [begun.flow_run_id])


async def _ended(client: PrefectClient, run: FlowRun) -> None:
    """Cancel a run that has not ended: deleted before, its worker would not end its process.

    Raises:
        RetryableError: it does not end for now.
    """
    if seen(run).ended:
        return
    if run.state is None or run.state.type is not StateType.CANCELLING:
        await cancel(run.id, "What it is about is erased")
    end = time.monotonic() + ENDING_SECONDS
    while not all(seen(one).ended for one in await read_runs(client, [run.id])):
        if time.monotonic() > end:
            raise RetryableError(f"Flow run {run.id} was cancelled and has not ended yet. The next purge deletes it.")
        await asyncio.sleep(PAUSE_SECONDS)


async def _delete_artifacts(client: PrefectClient, attempt: Attempt) -> None:
    keys = [f"{kind}-{attempt.session_id}-{attempt.attempt}".replace("_", "-") for kind in ("decision", "error")]
    of_keys = ArtifactFilter(key=ArtifactFilterKey(any_=keys))
    others = 0
    while page := await client.read_artifacts(artifact_filter=of_keys, limit=PAGE, offset=others):
        for artifact in page:
            # Keys have no underscore: session a_b and session a-b have the same.
            if f"`{attempt.session_id}`, attempt {attempt.attempt}" not in str(artifact.data):
                others += 1
                continue
            with suppress(ObjectNotFound):
                await client.delete_artifact(artifact.id)
