"""Task: delete what is past its age. Resumable: what is done is written down, and what is left is due the next time.

Media, crops and scores go first, attempt by attempt (`tasks/erasing.py`); then what lies in storage and belongs to
nothing; at last, years later, decisions and the audit trail.
"""

import asyncio
import logging
import re
from collections.abc import Awaitable, Iterator
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import Annotated, TypeVar

from prefect import task
from prefect.artifacts import acreate_markdown_artifact
from prefect.cache_policies import NO_CACHE
from prefect.runtime import flow_run
from pydantic import Field
from sqlalchemy import Engine

from tasks.contracts import Plain
from tasks.database import database_for
from tasks.database.retention import (
    due_for_erasing,
    forget_audit,
    forget_sessions,
    known_comparisons,
    reopen_erased,
    unerased_attempts,
    unneeded_comparisons,
)
from tasks.dispatch import prefect_errors
from tasks.erasing import Erased, erase_attempt, erase_comparison
from tasks.errors import RetryableError, is_retryable
from tasks.retries import retried
from tasks.settings import Settings, current_settings
from tasks.storage import Storage, open_storage
from tasks.storage.keys import RESULTS

BATCH = 100
DAY_SECONDS = 86_400
MOST_FAILURES = 10
"""In a row: then it is not about one attempt, and the thousands that are due are not tried either."""

LINES = 1000
"""Of the audit trail, in one transaction."""

ATTEMPT = re.compile(r"(?:results/)?sessions/([a-z0-9][a-z0-9_-]{0,63})/([1-9][0-9]{0,3})/")
COMPARISON = re.compile(r"(?:results/)?comparisons/([0-9a-f]{64})/")

T = TypeVar("T")
log = logging.getLogger(__name__)


class Purged(Plain):
    """What a purge has removed."""

    erased: Erased = Erased()
    orphans: Annotated[int, Field(description="Old objects that belonged to nothing.")] = 0
    forgotten_attempts: int = 0
    forgotten_decisions: int = 0
    forgotten_audit_lines: int = 0
    left: Annotated[int, Field(description="What could not be removed, and is due again.")] = 0


@task(name="purge", cache_policy=NO_CACHE, **retried(3))
async def purge() -> Purged:
    """Erase media, crops and scores past their age, forget decisions and audit past theirs, and publish how much.

    What cannot be erased is left for the next time and does not keep the others.

    Raises:
        RetryableError: something is left for a reason that may pass: tried again. Any other: something is left for it.
    """
    settings = current_settings()
    database, by = database_for(settings), f"purge {flow_run.id or ''}".strip()
    age = settings.media_retention_days * DAY_SECONDS
    failures = _Failures()
    erased = await _erase_attempts(database, age, by, failures)
    erased += await _erase_comparisons(database, age, by, failures)
    before = datetime.now(UTC) - timedelta(seconds=age)
    orphans = await failures.note(asyncio.to_thread(delete_orphans, settings, before, by=by))
    attempts, decisions, lines = await _forget(database, settings.decision_retention_days * DAY_SECONDS)
    purged = Purged(
        erased=erased,
        orphans=orphans or 0,
        forgotten_attempts=attempts,
        forgotten_decisions=decisions,
        forgotten_audit_lines=lines,
        left=len(failures.errors),
    )
    counts = dict(_counts(purged))
    log.info("purged: %s", ", ".join(f"{n} {what}" for what, n in counts.items()), extra={"action": "sessions.purged"})
    with prefect_errors():
        await acreate_markdown_artifact(
            key="purge-report",
            markdown=markdown(purged, settings),
            description=f"{erased.attempts} attempts erased, {purged.left} left",
        )
    failures.check()
    return purged


def markdown(purged: Purged, settings: Settings) -> str:
    """The report's text, Markdown: counts and ages only."""
    rows = "\n".join(f"| {what} | {count} |" for what, count in _counts(purged))
    return (
        "# Purge\n\n"
        f"Media, crops and scores are kept for {settings.media_retention_days} days after a session's end, "
        f"decisions and the audit trail for {settings.decision_retention_days} days.\n\n"
        f"| Removed | Number |\n| --- | --- |\n{rows}\n"
    )


def delete_orphans(settings: Settings, before: datetime, *, by: str) -> int:
    """Delete objects stored before a moment that belong to nothing; how many.

    What lies under `sessions/` belongs to an attempt that is not erased, what lies under `comparisons/` to a row; so
    does what lies under `results/`. Everything that an evaluation put into storage is only kept for this long.

    Raises:
        StorageUnavailable, DatabaseUnavailable, ConfigurationError. LeaseHeld: a comparison is being computed.
    """
    database, storage = database_for(settings), open_storage(settings)
    count = 0
    for prefix in ("sessions/", f"{RESULTS}sessions/"):
        for keys in _old(storage, prefix, before):
            count += _delete(storage, _of_no_attempt(database, keys))
    for prefix in ("comparisons/", f"{RESULTS}comparisons/"):
        for keys in _old(storage, prefix, before):
            found = {key: COMPARISON.match(key) for key in keys}
            named = {match[1] for match in found.values() if match is not None}
            for comparison_key in sorted(named - known_comparisons(database, named)):
                count += erase_comparison(comparison_key, by=by).objects
            count += _delete(storage, [key for key, match in found.items() if match is None])
    for keys in _old(storage, "evaluations/", before):
        count += _delete(storage, keys)
    return count


def _old(storage: Storage, prefix: str, before: datetime) -> Iterator[list[str]]:
    keys = (stored.key for stored in storage.listing(prefix) if stored.modified_at < before)
    while page := list(islice(keys, BATCH)):
        yield page


def _of_no_attempt(database: Engine, keys: list[str]) -> list[str]:
    attempts = {key: (match[1], int(match[2])) for key in keys if (match := ATTEMPT.match(key)) is not None}
    needed = unerased_attempts(database, {*attempts.values()})
    return [key for key in keys if attempts.get(key) not in needed]


def _delete(storage: Storage, keys: list[str]) -> int:
    for key in keys:
        storage.delete(key)
    return len(keys)


async def _erase_attempts(database: Engine, age: float, by: str, failures: "_Failures") -> Erased:
    await asyncio.to_thread(reopen_erased, database)
    erased, last = Erased(), None
    while page := await asyncio.to_thread(due_for_erasing, database, age, BATCH, last):
        for due in page:
            if failures.hopeless:
                return erased
            ids = {"session_id": due.session_id, "attempt": due.attempt}
            erased += await failures.note(erase_attempt(due.session_id, due.attempt, by=by), **ids) or Erased()
        last = page[-1]
    return erased


async def _erase_comparisons(database: Engine, age: float, by: str, failures: "_Failures") -> Erased:
    erased, last = Erased(), ""
    while page := await asyncio.to_thread(unneeded_comparisons, database, age, BATCH, last):
        for key in page:
            if failures.hopeless:
                return erased
            one = asyncio.to_thread(erase_comparison, key, by=by)
            erased += await failures.note(one, comparison_key=key) or Erased()
        last = page[-1]
    return erased


async def _forget(database: Engine, age: float) -> tuple[int, int, int]:
    """Attempts, decisions and lines of the audit trail that are deleted now."""
    attempts, decisions, lines = 0, 0, 0
    while (now := await asyncio.to_thread(forget_sessions, database, age, BATCH)) != (0, 0):
        attempts, decisions = attempts + now[0], decisions + now[1]
    while batch := await asyncio.to_thread(forget_audit, database, age, LINES):
        lines += batch
    return attempts, decisions, lines


def _counts(purged: Purged) -> list[tuple[str, int]]:
    """What there was, in words, and how much of it."""
    return [
        ("attempts erased", purged.erased.attempts),
        ("objects of sessions and comparisons", purged.erased.objects),
        ("comparisons with their scores", purged.erased.comparisons),
        ("flow runs in Prefect", purged.erased.runs),
        ("objects that belonged to nothing", purged.orphans),
        ("attempts forgotten", purged.forgotten_attempts),
        ("decisions forgotten", purged.forgotten_decisions),
        ("lines of the audit trail", purged.forgotten_audit_lines),
        ("left for the next purge", purged.left),
    ]


class _Failures:
    """What went wrong so far. One attempt that cannot be erased does not keep the others."""

    def __init__(self) -> None:
        self.errors: list[Exception] = []
        self._in_a_row = 0

    @property
    def hopeless(self) -> bool:
        """Whether nothing works any more."""
        return self._in_a_row >= MOST_FAILURES

    async def note(self, work: Awaitable[T], **ids: object) -> T | None:
        """The work's answer; None when it failed."""
        try:
            answer = await work
        except Exception as exc:
            self.errors.append(exc)
            self._in_a_row += 1
            log.exception("not erased; the next purge tries it again", extra={"action": "purge.left", **ids})
            return None
        self._in_a_row = 0
        return answer

    def check(self) -> None:
        """Raise, if anything is left."""
        passing = [error for error in self.errors if is_retryable(error)]
        if passing:
            raise RetryableError(f"{len(self.errors)} things could not be erased: {passing[0]}") from passing[0]
        if self.errors:
            raise self.errors[0]
