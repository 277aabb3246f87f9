"""Tasks around one comparison: asking for it (session worker), computing and storing it (GPU worker)."""

import asyncio
import tempfile
from pathlib import Path

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.runtime import flow_run

from tasks.contracts import Comparison, EngineConfig, FaceComparison, Plain, StoredFile, comparison_key
from tasks.database import database_for
from tasks.database.comparisons import begin_comparison, finish_comparison, get_comparison
from tasks.dispatch import start_comparison, wait_for_end
from tasks.errors import ComparisonFailed
from tasks.faces.models import measured
from tasks.retries import retried
from tasks.settings import Settings
from tasks.storage import open_storage
from tasks.storage.files import fetch
from tasks.storage.keys import picture_key


class Computed(Plain):
    """What computing a comparison leaves behind, before it is stored."""

    result: FaceComparison
    picture_key: str | None


@task(name="request comparison", cache_policy=NO_CACHE, **retried(5))
async def request_comparison(reference: StoredFile, probe: StoredFile, engine: EngineConfig) -> Comparison:
    """The comparison of two files: the stored row, or that of a `compare-faces` run started now and waited for.

    The idempotency key of a run that ended without a row is spent, so each dispatch has its number. Runs that ended
    before this call are passed over: they are not held against it.

    Raises:
        ComparisonFailed: no dispatch gave a row. OrchestratorUnavailable, DatabaseUnavailable: tried again first.
    """
    settings = Settings()
    database = database_for(settings)
    key = comparison_key(reference.sha256, probe.sha256, engine)
    if (row := await asyncio.to_thread(get_comparison, database, key)) is not None:
        return row
    ended: list[str] = []
    dispatch = 0
    while len(ended) < settings.comparison_dispatches:
        dispatch += 1
        run = await start_comparison(key, dispatch, reference, probe, engine)
        if run.state is not None and run.state.is_final():
            continue
        state = await wait_for_end(run.id, settings.comparison_wait_seconds)
        if (row := await asyncio.to_thread(get_comparison, database, key)) is not None:
            return row
        ended.append(f"{run.id} {state.name if state else 'not ended'}")
    raise ComparisonFailed(
        f"Comparison {key[:12]} was dispatched {len(ended)} times without a result ({'; '.join(ended)}). "
        "Open these flow runs in the Prefect UI for the cause, then retry this one."
    )


@task(
    name="compute comparison",
    cache_key_fn=lambda _context, parameters: f"kycflow-comparison-{parameters['key']}",
    **retried(3),
)
def compute_comparison(key: str, reference: StoredFile, probe: StoredFile, engine: EngineConfig) -> Computed:
    """Compare reference and probe on this worker's device, unless the row is there already. Its start is counted.

    Raises:
        ObjectMissing, ObjectChanged: storage has not the bytes that were announced.
        ConfigurationError: weights are missing. StorageUnavailable, DatabaseUnavailable, ComputeUnavailable.
    """
    settings = Settings()
    owner = flow_run.id or "outside a flow run"
    stored = begin_comparison(database_for(settings), key, reference.sha256, probe.sha256, engine, owner)
    if stored is not None:
        return Computed(result=stored.result, picture_key=stored.picture_key)

    # Imported here: session workers import this module and have no engine.
    from tasks.faces.engine import load_engine
    from tasks.faces.picture import report

    storage = open_storage(settings)
    with tempfile.TemporaryDirectory(prefix="kycflow-") as name:
        folder = Path(name)
        fetch(storage, reference, folder / "reference")
        fetch(storage, probe, folder / "probe")
        compared = load_engine(engine, settings).compare(folder / "reference", folder / "probe", settings)
        if compared.card_pixels is None:  # nothing that could be shown
            return Computed(result=compared.comparison, picture_key=None)
        picture = folder / "faces.png"
        known = measured(engine.recogniser, engine.detector)
        thresholds = known.thresholds if known else None
        picture.write_bytes(report(compared, thresholds, known, caption=f"comparison {key[:12]}"))
        storage.put(picture_key(key), picture)
    return Computed(result=compared.comparison, picture_key=picture_key(key))


@task(name="store comparison", cache_policy=NO_CACHE, **retried(5))
def store_comparison(
    key: str, reference: StoredFile, probe: StoredFile, engine: EngineConfig, computed: Computed
) -> Comparison:
    """Store the row under its unique key; the row that is there, whoever wrote it."""
    return finish_comparison(
        database_for(Settings()),
        key,
        reference.sha256,
        probe.sha256,
        engine,
        result=computed.result,
        picture_key=computed.picture_key,
    )
