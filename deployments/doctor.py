"""`kycflow doctor`: what is missing, in words, and how to mend it."""

import asyncio
import importlib.util
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Literal

import httpx
from prefect.client.orchestration import PrefectClient
from prefect.exceptions import ObjectNotFound
from prefect.settings import PREFECT_API_URL, temporary_settings
from pydantic import BaseModel
from sqlalchemy import text

from deployments.provision import POOLS
from deployments.stack import Addresses, running
from tasks.database import database_for
from tasks.database.engine import database_name
from tasks.dispatch import COMPARE_FACES, VERIFY_SESSION, prefect_api
from tasks.errors import KycflowError
from tasks.faces.models import ANTI_SPOOFING, anti_spoofing_runs, engine_config, verify
from tasks.judgement import thresholds_for
from tasks.settings import Settings
from tasks.storage import open_storage

SWEEP_SESSIONS = "sweep-sessions/sweep-sessions"


class Finding(BaseModel):
    """One thing looked at. `missing` keeps kycflow from working, `warning` does not."""

    what: str
    state: Literal["ok", "warning", "missing"]
    finding: str
    remedy: str = ""


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
        *asyncio.run(_prefect()),
        _upload_api(settings, found.upload_api if found else None),
    ]


def _checked(what: str, fine: str, check: Callable[[], object]) -> Finding:
    try:
        check()
    except KycflowError as exc:
        return Finding(what=what, state="missing", finding=type(exc).__name__, remedy=str(exc))
    return Finding(what=what, state="ok", finding=fine)


def _python() -> Finding:
    version = ".".join(str(part) for part in sys.version_info[:3])
    if (3, 11) <= sys.version_info[:2] <= (3, 13):
        return Finding(what="Python", state="ok", finding=version)
    return Finding(what="Python", state="missing", finding=version, remedy="Use Python 3.11, 3.12 or 3.13.")


def _database(settings: Settings) -> None:
    with database_for(settings).connect() as connection:
        connection.execute(text("SELECT 1"))


def _engine(settings: Settings) -> Iterator[Finding]:
    absent = [name for name in ("deepface", "cv2", "onnxruntime") if importlib.util.find_spec(name) is None]
    if absent:
        yield Finding(
            what="Face engine",
            state="warning",
            finding=f"not installed here ({', '.join(absent)})",
            remedy="Only workers of the pool `gpu` need it: pip install 'kycflow[faces]'.",
        )
        return
    yield Finding(what="Face engine", state="ok", finding=f"{settings.recogniser} with {settings.detector}")
    try:
        states = verify(settings)
    except KycflowError as exc:
        yield Finding(what="Weights", state="missing", finding=type(exc).__name__, remedy=str(exc))
        return
    for file, state in states:
        if state == "ok":
            yield Finding(what="Weights", state="ok", finding=file.name)
        else:
            yield Finding(
                what="Weights", state="missing", finding=f"{file.name}: {state}", remedy="Run `kycflow models pull`."
            )
    if all(state == "ok" for _, state in states):
        yield _device(settings)
        yield _anti_spoofing(settings)


def _device(settings: Settings) -> Finding:
    """Where embeddings are computed: known only once the models are loaded."""
    from tasks.faces.engine import load_engine

    try:
        device = load_engine(engine_config(settings), settings).device
    except KycflowError as exc:
        return Finding(what="Device", state="missing", finding=type(exc).__name__, remedy=str(exc))
    return Finding(what="Device", state="ok", finding=f"{device} (KYCFLOW_DEVICE is {settings.device})")


def _anti_spoofing(settings: Settings) -> Finding:
    if anti_spoofing_runs(settings):
        return Finding(what="Anti-spoofing", state="ok", finding="on")
    if settings.anti_spoofing == "off":
        return Finding(what="Anti-spoofing", state="ok", finding="off, as set")
    return Finding(
        what="Anti-spoofing",
        state="warning",
        finding="off: no weights",
        remedy=f"Put {' and '.join(ANTI_SPOOFING)} into KYCFLOW_MODELS_FOLDER and their sums into "
        "KYCFLOW_WEIGHTS_SHA256, then `kycflow models pull`.",
    )


async def _prefect() -> list[Finding]:
    """Server, deployments, pools and their workers."""
    findings = []
    try:
        async with prefect_api() as client:
            findings.append(Finding(what="Prefect", state="ok", finding=str(client.api_url)))
            for name in (VERIFY_SESSION, COMPARE_FACES, SWEEP_SESSIONS):
                try:
                    await client.read_deployment_by_name(name)
                    findings.append(Finding(what="Deployment", state="ok", finding=name))
                except ObjectNotFound:
                    findings.append(
                        Finding(what="Deployment", state="missing", finding=name, remedy="Run `kycflow deploy`.")
                    )
            for pool, *_ in POOLS:
                findings.append(await _workers(client, pool))
    except KycflowError as exc:
        findings.append(
            Finding(
                what="Prefect",
                state="missing",
                finding="no API",
                remedy=f"{exc} `kycflow up` starts one; for another, set PREFECT_API_URL.",
            )
        )
    return findings


async def _workers(client: PrefectClient, pool: str) -> Finding:
    start = f"Start one: prefect worker start --pool {pool}"
    try:
        await client.read_work_pool(pool)
    except ObjectNotFound:
        return Finding(what="Work pool", state="missing", finding=pool, remedy="Run `kycflow deploy`.")
    workers = await client.read_workers_for_work_pool(pool)
    recent = datetime.now(UTC) - timedelta(minutes=2)
    alive = [worker for worker in workers if worker.last_heartbeat_time and worker.last_heartbeat_time > recent]
    if not alive:
        return Finding(what="Work pool", state="missing", finding=f"{pool}: no worker in two minutes", remedy=start)
    return Finding(what="Work pool", state="ok", finding=f"{pool}: {len(alive)} worker{'s' if len(alive) > 1 else ''}")


def _upload_api(settings: Settings, running_at: str | None) -> Finding:
    url = str(settings.api_url) if settings.api_url else running_at
    if url is None:
        return Finding(
            what="Upload API", state="warning", finding="not running here", remedy="`kycflow up` starts one."
        )
    try:
        httpx.get(f"{url.rstrip('/')}/health", timeout=5).raise_for_status()
    except httpx.HTTPError as exc:
        return Finding(
            what="Upload API", state="missing", finding=type(exc).__name__, remedy=f"See what runs at {url}."
        )
    return Finding(what="Upload API", state="ok", finding=url)
