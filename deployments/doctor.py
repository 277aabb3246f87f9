"""`kycflow doctor`: what is missing, in words, and how to mend it."""

import asyncio
import importlib.util
import shlex
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Literal

import httpx
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterDeploymentId, FlowRunFilterStartTime
from prefect.client.schemas.sorting import FlowRunSort
from prefect.exceptions import ObjectNotFound
from prefect.settings import PREFECT_API_URL, temporary_settings
from pydantic import BaseModel
from sqlalchemy import func, select, text

from deployments.provision import POOLS, QUEUE, SESSIONS, UPKEEP_QUEUE
from deployments.server_configuration import LOST_RUNS, as_wanted
from deployments.server_retention import (
    EVENT_RETENTION,
    RUN_RETENTION,
    VACUUM,
    read_retention,
    retention_variables,
)
from deployments.stack import Addresses, running
from tasks.contracts import Status
from tasks.database import database_for
from tasks.database.engine import database_name, reading
from tasks.database.tables import AttemptRow
from tasks.dispatch import COMPARE_FACES, FAULTS, VERIFY_SESSION, prefect_api
from tasks.errors import KycflowError
from tasks.faces.models import ANTI_SPOOFING, anti_spoofing_runs, engine_config, verify
from tasks.judgement import thresholds_for
from tasks.settings import Settings
from tasks.storage import open_storage

SWEEP_SESSIONS = "sweep-sessions/sweep-sessions"
RECENT = timedelta(minutes=2)
EXAMPLES = 3


class Finding(BaseModel):
    """One thing looked at. `missing` keeps kycflow from working, `warning` does not."""

    what: str
    state: Literal["ok", "warning", "missing"]
    finding: str
    remedy: str = ""


def _ok(what: str, finding: str) -> Finding:
    return Finding(what=what, state="ok", finding=finding)


def _warning(what: str, finding: str, remedy: str) -> Finding:
    return Finding(what=what, state="warning", finding=finding, remedy=remedy)


def _missing(what: str, finding: str, remedy: str) -> Finding:
    return Finding(what=what, state="missing", finding=finding, remedy=remedy)


def examine(settings: Settings) -> list[Finding]:
    """Look at everything that kycflow needs on this machine. Never raises.

    It only looks, but for two things: an embedded database brings itself up to date, and storage gets a small object.
    """
    found = running(settings)
    prefect = {} if found is None else {PREFECT_API_URL: found.prefect_api}
    with temporary_settings(prefect):
        return _examine(settings, found)


def _examine(settings: Settings, found: Addresses | None) -> list[Finding]:
    return [
        _python(),
        _checked("Database", database_name(settings.database), lambda: _database(settings)),
        _checked("Storage", settings.storage_url or "folder in the state folder", open_storage(settings).check),
        *_engine(settings),
        _checked(
            "Thresholds",
            f"known for {settings.recogniser} with {settings.detector}",
            lambda: thresholds_for(settings),
        ),
        *asyncio.run(examine_prefect(settings)),
        examine_sessions(settings),
        _upload_api(settings, found.upload_api if found else None),
    ]


def _checked(what: str, fine: str, check: Callable[[], object]) -> Finding:
    try:
        check()
    except KycflowError as exc:
        return _missing(what, type(exc).__name__, str(exc))
    return _ok(what, fine)


def _python() -> Finding:
    version = ".".join(str(part) for part in sys.version_info[:3])
    if (3, 11) <= sys.version_info[:2] <= (3, 13):
        return _ok("Python", version)
    return _missing("Python", version, "Use Python 3.11, 3.12 or 3.13.")


def _database(settings: Settings) -> None:
    with database_for(settings).connect() as connection:
        connection.execute(text("SELECT 1"))


def _engine(settings: Settings) -> Iterator[Finding]:
    absent = [name for name in ("deepface", "cv2", "onnxruntime") if importlib.util.find_spec(name) is None]
    if absent:
        yield _warning(
            "Face engine",
            f"not installed here ({', '.join(absent)})",
            "Only workers of the pool `gpu` need it: pip install 'kycflow[faces]'.",
        )
        return
    yield _ok("Face engine", f"{settings.recogniser} with {settings.detector}")
    try:
        states = verify(settings)
    except KycflowError as exc:
        yield _missing("Weights", type(exc).__name__, str(exc))
        return
    for file, state in states:
        if state == "ok":
            yield _ok("Weights", file.name)
        else:
            yield _missing("Weights", f"{file.name}: {state}", "Run `kycflow models pull`.")
    if all(state == "ok" for _, state in states):
        yield _device(settings)
        yield _anti_spoofing(settings)


def _device(settings: Settings) -> Finding:
    """Where embeddings are computed: known only once the models are loaded."""
    from tasks.faces.engine import load_engine

    try:
        device = load_engine(engine_config(settings), settings).device
    except KycflowError as exc:
        return _missing("Device", type(exc).__name__, str(exc))
    return _ok("Device", f"{device} (KYCFLOW_DEVICE is {settings.device})")


def _anti_spoofing(settings: Settings) -> Finding:
    if anti_spoofing_runs(settings):
        return _ok("Anti-spoofing", "on")
    if settings.anti_spoofing == "off":
        return _ok("Anti-spoofing", "off, as set")
    return _warning(
        "Anti-spoofing",
        "off: no weights",
        f"Put {' and '.join(ANTI_SPOOFING)} into KYCFLOW_MODELS_FOLDER and their sums into "
        "KYCFLOW_WEIGHTS_SHA256, then `kycflow models pull`.",
    )


async def examine_prefect(settings: Settings) -> list[Finding]:
    """Look at the server in PREFECT_API_URL: deployments, pools and their workers, upkeep, retention. Never raises."""
    findings = []
    try:
        async with prefect_api() as client:
            findings.append(_ok("Prefect", str(client.api_url)))
            for name in (VERIFY_SESSION, COMPARE_FACES, SWEEP_SESSIONS):
                findings.append(await _deployment(client, name))
            for pool, *_ in POOLS:
                findings.append(await _workers(client, pool))
            findings.append(await _upkeep_places(client))
            findings.append(await _sweeps(client))
            findings.append(await _lost_runs(client))
            findings += await _retention(client, settings.media_retention_days)
    except KycflowError as exc:
        findings.append(
            _missing("Prefect", "no API", f"{exc} `kycflow up` starts one; for another, set PREFECT_API_URL.")
        )
    return findings


async def _deployment(client: PrefectClient, name: str) -> Finding:
    try:
        await client.read_deployment_by_name(name)
    except ObjectNotFound:
        return _missing("Deployment", name, "Run `kycflow deploy`.")
    return _ok("Deployment", name)


async def _workers(client: PrefectClient, pool: str) -> Finding:
    start = f"Start one: kycflow worker --pool {pool}"
    try:
        await client.read_work_pool(pool)
    except ObjectNotFound:
        return _missing("Work pool", pool, "Run `kycflow deploy`.")
    workers = await client.read_workers_for_work_pool(pool)
    recent = datetime.now(UTC) - RECENT
    alive = [worker for worker in workers if worker.last_heartbeat_time and worker.last_heartbeat_time > recent]
    if not alive:
        return _missing("Work pool", f"{pool}: no worker in two minutes", start)
    return _ok("Work pool", f"{pool}: {len(alive)} worker{'s' if len(alive) > 1 else ''}")


async def _upkeep_places(client: PrefectClient) -> Finding:
    """Whether the sweep finds a place however many runs were lost: those hold theirs until it has mended them."""
    what = "Work queue"
    try:
        pool = await client.read_work_pool(SESSIONS)
        queue = await client.read_work_queue_by_name(UPKEEP_QUEUE, work_pool_name=SESSIONS)
    except ObjectNotFound:
        return _missing(what, UPKEEP_QUEUE, "Run `kycflow deploy`.")
    if pool.concurrency_limit is not None:
        limit = pool.concurrency_limit
        return _warning(
            what,
            f"the pool {SESSIONS} has a limit ({limit}): as many lost runs keep the sweep from running",
            f"Limit its queue instead: prefect work-queue set-concurrency-limit {QUEUE} {limit} --pool {SESSIONS}, "
            f"then prefect work-pool clear-concurrency-limit {SESSIONS}",
        )
    if queue.concurrency_limit is not None:
        return _warning(
            what,
            f"{UPKEEP_QUEUE} has a limit ({queue.concurrency_limit}): as many lost sweeps keep the next from running",
            f"Remove it: prefect work-queue clear-concurrency-limit {UPKEEP_QUEUE} --pool {SESSIONS}",
        )
    return _ok(what, f"{UPKEEP_QUEUE}, without a limit")


async def _sweeps(client: PrefectClient) -> Finding:
    """Whether lost runs are being looked for. A deployment made just now is given time for its first run."""
    what = "Sweep"
    try:
        deployment = await client.read_deployment_by_name(SWEEP_SESSIONS)
    except ObjectNotFound:
        return _missing(what, "not deployed", "Run `kycflow deploy`.")
    began = FlowRunFilter(
        deployment_id=FlowRunFilterDeploymentId(any_=[deployment.id]),
        start_time=FlowRunFilterStartTime(is_null_=False),
    )
    runs = await client.read_flow_runs(flow_run_filter=began, sort=FlowRunSort.START_TIME_DESC, limit=1)
    last = runs[0] if runs else None
    since = last.start_time if last else deployment.created
    if since is None or since < datetime.now(UTC) - RECENT:
        when = f"the last one began {since:%Y-%m-%d %H:%M:%S} UTC" if last else "none has ever begun"
        return _warning(
            what,
            f"none in two minutes: {when}",
            "Lost runs stay lost. See that the schedule of sweep-sessions is active and a worker of the pool "
            f"runs: kycflow worker --pool {SESSIONS}",
        )
    if last is not None and last.state is not None and last.state.type in FAULTS:
        return _warning(what, f"the last one ended {last.state.name}", f"See the log of flow run {last.id} in the UI.")
    return _ok(what, f"{since:%H:%M:%S} UTC" if last else "the first one is due")


async def _lost_runs(client: PrefectClient) -> Finding:
    """The second net below the sweep."""
    what = "Automation"
    found = await client.read_automations_by_name(LOST_RUNS)
    if not found:
        return _warning(what, f"{LOST_RUNS}: not there", "Run `kycflow deploy`.")
    if len(found) > 1 or not as_wanted(found[0]):
        return _warning(what, f"{LOST_RUNS}: not as it should be", "Run `kycflow deploy`.")
    if not found[0].enabled:
        return _warning(what, f"{LOST_RUNS}: off", "Switch it on in the UI, page Automations.")
    return _ok(what, LOST_RUNS)


async def _retention(client: PrefectClient, days: int) -> list[Finding]:
    """Whether what Prefect says about sessions goes when their media do: it tells how alike two faces were."""
    what = "Retention"
    kept = await read_retention(client)
    if kept is None:
        return [
            _warning(
                what,
                "this Prefect server does not say how long it keeps runs",
                f"See that it deletes them within {days} days: they tell how alike two faces were.",
            )
        ]
    variables = retention_variables(days)
    return [
        _kept("flow runs", kept.runs, days, {name: variables[name] for name in (VACUUM, RUN_RETENTION)}),
        _kept("events", kept.events, days, {name: variables[name] for name in (VACUUM, EVENT_RETENTION)}),
    ]


def _kept(things: str, kept: timedelta | None, days: int, variables: dict[str, str]) -> Finding:
    what = "Retention"
    if kept is not None and kept <= timedelta(days=days):
        return _ok(what, f"Prefect keeps {things} for {_in_words(kept)}")
    return _warning(
        what,
        f"Prefect keeps {things} {f'for {_in_words(kept)}' if kept else 'for ever'}, media are kept for {days} days",
        "Set in the environment of Prefect's server, and start it again: "
        + " ".join(f"{name}={shlex.quote(value)}" for name, value in variables.items()),
    )


def _in_words(time: timedelta) -> str:
    return f"{time / timedelta(days=1):g} days"


def examine_sessions(settings: Settings) -> Finding:
    """Sessions that the system has given up, each of which waits for a person."""
    what = "Sessions"
    failed = AttemptRow.status == Status.ERROR
    try:
        with reading(database_for(settings)) as session:
            number = session.scalar(select(func.count()).where(failed)) or 0
            newest = select(AttemptRow.session_id).where(failed).order_by(AttemptRow.closed_at.desc()).limit(EXAMPLES)
            names = ", ".join(session.scalars(newest))
    except KycflowError as exc:
        return _missing(what, type(exc).__name__, str(exc))
    if number == 0:
        return _ok(what, "none in status error")
    return _warning(
        what,
        f"{number} in status error: {names}{', …' if number > EXAMPLES else ''}",
        "`kycflow audit SESSION_ID` says why. To go on, upload a file again, or retry the flow run in the UI.",
    )


def _upload_api(settings: Settings, running_at: str | None) -> Finding:
    url = str(settings.api_url) if settings.api_url else running_at
    if url is None:
        return _warning("Upload API", "not running here", "`kycflow up` starts one.")
    try:
        httpx.get(f"{url.rstrip('/')}/health", timeout=5).raise_for_status()
    except httpx.HTTPError as exc:
        return _missing("Upload API", type(exc).__name__, f"See what runs at {url}.")
    return _ok("Upload API", url)
