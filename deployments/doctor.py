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
from prefect.settings import temporary_settings
from pydantic import BaseModel
from sqlalchemy import func, select, text

from deployments.exposure import exposures
from deployments.prefect_access import client_settings
from deployments.provision import POOLS, QUEUE, RESIDENT, UPKEEP, other_type
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
from tasks.dispatch import FAULTS, SWEEP_SESSIONS, VERIFY_SESSION, prefect_api
from tasks.errors import KycflowError
from tasks.faces.models import ANTI_SPOOFING, anti_spoofing_runs, engine_config, verify
from tasks.judgement import thresholds_for
from tasks.settings import Settings
from tasks.storage import open_storage
from tasks.sweep.place import at_work

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
    with temporary_settings(client_settings(settings, found)):
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
            findings += await _access(str(client.api_url))
            for name in (VERIFY_SESSION, SWEEP_SESSIONS):
                findings.append(await _deployment(client, name))
            for pool, *_ in POOLS:
                findings += await _workers(client, pool, settings.worker_type)
            findings.append(await _upkeep_places(client))
            findings.append(await _sweeps(client, settings))
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


async def _access(api_url: str) -> list[Finding]:
    """Whether strangers can use the server."""
    what = "Access"
    found = await exposures(api_url)
    return [_warning(what, *one) for one in found] or [_ok(what, "with a login, for no other origin")]


async def _workers(client: PrefectClient, pool: str, worker_type: str) -> list[Finding]:
    what = "Work pool"
    try:
        found = (await client.read_work_pool(pool)).type
    except ObjectNotFound:
        return [_missing(what, pool, "Run `kycflow deploy`.")]
    if found != worker_type:
        return [_missing(what, f"{pool}: its workers refuse it", other_type(pool, found, worker_type))]
    workers = await client.read_workers_for_work_pool(pool)
    recent = datetime.now(UTC) - RECENT
    alive = [worker for worker in workers if worker.last_heartbeat_time and worker.last_heartbeat_time > recent]
    if alive:
        findings = [_ok(what, f"{pool}: {len(alive)} worker{'s' if len(alive) > 1 else ''}")]
    else:
        findings = [_missing(what, f"{pool}: no worker in two minutes", f"Start one: kycflow worker --pool {pool}")]
    if found != RESIDENT:
        findings.append(
            _warning(
                what,
                f"{pool}: with type {found}, Prefect's server says what its workers run",
                "Let nobody else write to that server. Workers of type resident run kycflow's flows only.",
            )
        )
    return findings


async def _upkeep_places(client: PrefectClient) -> Finding:
    """Whether the sweep finds a place however many runs were lost: those hold theirs until it has mended them."""
    what = "Work queue"
    try:
        pool = await client.read_work_pool(UPKEEP)
        queue = await client.read_work_queue_by_name(QUEUE, work_pool_name=UPKEEP)
    except ObjectNotFound:
        return _missing(what, f"{UPKEEP}/{QUEUE}", "Run `kycflow deploy`.")
    for limit, whose, remedy in (
        (pool.concurrency_limit, f"the pool {UPKEEP}", f"work-pool clear-concurrency-limit {UPKEEP}"),
        (queue.concurrency_limit, "its queue", f"work-queue clear-concurrency-limit {QUEUE} --pool {UPKEEP}"),
    ):
        if limit is not None:
            finding = f"{whose} has a limit ({limit}): as many lost sweeps keep the next from running"
            return _warning(what, finding, f"Remove it: prefect {remedy}")
    return _ok(what, f"{UPKEEP}/{QUEUE}, without a limit")


async def _sweeps(client: PrefectClient, settings: Settings) -> Finding:
    """Whether lost runs are being looked for: by the lease of the sweep that is at work."""
    what = "Sweep"
    held = await asyncio.to_thread(lambda: at_work(database_for(settings)))
    if held is not None and not held.expired:
        return _ok(what, f"at work in flow run {held.owner}")
    try:
        deployment = await client.read_deployment_by_name(SWEEP_SESSIONS)
    except ObjectNotFound:
        return _missing(what, "not deployed", "Run `kycflow deploy`.")
    began = FlowRunFilter(
        deployment_id=FlowRunFilterDeploymentId(any_=[deployment.id]),
        start_time=FlowRunFilterStartTime(is_null_=False),
    )
    runs = await client.read_flow_runs(flow_run_filter=began, sort=FlowRunSort.START_TIME_DESC, limit=1)
    if runs and runs[0].state is not None and runs[0].state.type in FAULTS:
        finding = f"none at work: the last one ended {runs[0].state.name}"
        return _warning(what, finding, f"See the log of flow run {runs[0].id} in the UI.")
    return _warning(
        what,
        "none at work",
        f"Lost runs stay lost. See that a worker of its pool runs, which starts one: kycflow worker --pool {UPKEEP}",
    )


async def _retention(client: PrefectClient, days: int) -> list[Finding]:
    """Whether what Prefect says about sessions goes when their media do: it tells who was decided on, and how."""
    what = "Retention"
    kept = await read_retention(client)
    if kept is None:
        return [
            _warning(
                what,
                "this Prefect server does not say how long it keeps runs",
                f"See that it deletes them within {days} days: they tell how sessions were decided.",
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
