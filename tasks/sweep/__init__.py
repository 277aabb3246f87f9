"""Find sessions and flow runs that should be at work and are not, and mend them.

What rests on a missing sign of life is only done when a second look, some seconds later, finds the same: after an
outage of the database all signs of life have expired, and are renewed within a second. What is done is safe to do
twice, so two sweeps at once do no harm.
"""

import asyncio
import logging
import time
from contextlib import suppress
from typing import Any

from prefect.client.schemas.objects import State
from prefect.runtime import flow_run

from tasks.database import database_for
from tasks.database.leases import Lease
from tasks.errors import KycflowError, RetryableError
from tasks.recovery import Action
from tasks.settings import current_settings
from tasks.states import swept
from tasks.sweep.findings import Finding, Looker
from tasks.sweep.mend import mend
from tasks.sweep.place import keep_place, leave_place, take_place

PAUSE_SECONDS = 3
LONGEST_PAUSE_SECONDS = 30
MOST_FAILURES = 3
"""Mends of a look that fail before it is given up: then Prefect or the database is away, and not a run is ill."""

log = logging.getLogger(__name__)


class Sweep:
    """Looks again and again, until its time is over or a newer sweep has begun: both would only ask the same."""

    def __init__(self, repeat_seconds: float, *, dry_run: bool) -> None:
        """With a time of 0 it looks once, beside the sweep that is at work."""
        self._end = time.monotonic() + repeat_seconds
        self._dry_run = dry_run
        self._alone = repeat_seconds > 0 and not dry_run
        self._place: Lease | None = None
        self._looker = Looker()
        self._look_from = 0.0
        self._before: set[tuple[object, ...]] | None = None
        self._certain = False
        self._mended = 0

    async def run(self) -> State[Any]:
        """Look and mend; the final state of the sweep's flow run.

        Raises:
            OrchestratorUnavailable, DatabaseUnavailable: its time is over. Before that, it looks again.
        """
        try:
            while True:
                try:
                    if self._alone and not await self._has_place():
                        return swept(self._mended, "a newer sweep goes on")
                    if time.monotonic() >= self._look_from:
                        await self._look()
                except RetryableError as exc:
                    if time.monotonic() >= self._end:
                        raise
                    self._before, self._certain = None, True
                    log.warning("sweep interrupted: %s", exc, extra={"action": "sweep.trouble"})
                if self._certain and time.monotonic() >= self._end:
                    return swept(self._mended, "its time is over")
                await asyncio.sleep(PAUSE_SECONDS)
        finally:
            if self._place is not None:  # also where it is stopped: the next one need not wait for the lease to expire
                with suppress(KycflowError):
                    leave_place(database_for(current_settings()), self._place)

    async def _has_place(self) -> bool:
        """Raises DatabaseUnavailable."""
        database = database_for(current_settings())
        if self._place is None:
            self._place = await asyncio.to_thread(take_place, database, str(flow_run.id))
        return await asyncio.to_thread(keep_place, database, self._place)

    async def _look(self) -> None:
        """Raises OrchestratorUnavailable, DatabaseUnavailable."""
        began = time.monotonic()
        found = await self._looker.look()
        before, failed = self._before, 0
        now = [finding for finding in found if finding.certain or (before is not None and finding.same in before)]
        for finding in now:
            level = logging.INFO if finding.action is Action.EXPIRE else logging.WARNING  # the one is ordinary
            log.log(level, "%s: %s, %s", finding.subject, finding.action.value, finding.why, extra=_ids(finding))
            if not self._dry_run and not await self._mend(finding, last=failed + 1 == MOST_FAILURES):
                failed += 1
        self._mended += len(now) - failed
        self._certain = before is not None or all(finding.certain for finding in found)
        self._before = {finding.same for finding in found}
        if failed == 0:
            self._looker.all_mended()
        if before is not None and now == found:
            # With thousands at work a look takes long: it must not keep the servers busy.
            self._look_from = time.monotonic() + min(5 * (time.monotonic() - began), LONGEST_PAUSE_SECONDS)

    async def _mend(self, finding: Finding, *, last: bool) -> bool:
        """Whether it is done. One that fails does not keep the others from being mended, unless it is the last to fail.

        Raises:
            OrchestratorUnavailable, DatabaseUnavailable: it is the last.
        """
        try:
            await mend(finding)
        except RetryableError as exc:
            if last:
                raise
            log.warning("%s: not mended, %s", finding.subject, exc, extra=_ids(finding))
            return False
        if finding.action is Action.WAKE:
            self._looker.woken(finding)
        return True


async def sweep_once(*, dry_run: bool) -> list[Finding]:
    """Look and mend once, with a second look where one is not enough; what was mended, or would be.

    Raises:
        OrchestratorUnavailable, DatabaseUnavailable, ConfigurationError.
    """
    looker = Looker()
    found = await looker.look()
    if not all(finding.certain for finding in found):
        await asyncio.sleep(PAUSE_SECONDS)
        before = {finding.same for finding in found}
        found = [finding for finding in await looker.look() if finding.certain or finding.same in before]
    for finding in [] if dry_run else found:
        await mend(finding)
    return found


def _ids(finding: Finding) -> dict[str, object]:
    ids: dict[str, object] = {"action": f"sweep.{finding.action.name.lower()}"}
    if finding.attempt is not None:
        ids |= {"session_id": finding.attempt.session_id, "attempt": finding.attempt.attempt}
    return ids | ({} if finding.run is None else {"flow_run_id": str(finding.run.id)})
