"""Holding a lease while something runs: a thread renews it. The rules of a takeover are here, the rows in SQL."""

import logging
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from sqlalchemy import Engine

from tasks.database import database_for
from tasks.database.leases import Held, Lease, claim, release, renew, take
from tasks.errors import KycflowError, LeaseHeld
from tasks.settings import Settings, current_settings

RENEWALS = 4
"""How often a lease is renewed in its time: one renewal may fail, and the next one too."""
RETRY_SECONDS = 1.0

log = logging.getLogger(__name__)


@contextmanager
def kept(engine: Engine, lease: Lease, seconds: float) -> Iterator[Lease]:
    """Renew a lease from a thread until the block ends, then give it back.

    A thread, so that neither a blocked event loop nor a busy computation loses it: Python lets other threads run every
    few milliseconds. Only native calls that hold the interpreter's lock for longer than `seconds` would, or several for
    a fifth of it each without a line of Python in between: a renewal asks for that lock several times.
    """
    keeper = _Keeper(engine, lease, seconds)
    keeper.start()
    try:
        yield lease
    finally:
        keeper.stop()


@contextmanager
def sign_of_life(name: str, owner: str, *, forget: bool, runs: Callable[[], list[str]] | None = None) -> Iterator[None]:
    """Keep `name` claimed for `owner` while the block runs: who sees it expire knows that this process is gone.

    Never raises: work does not fail for its sign of life. A later claim by another owner ends this one.

    Args:
        forget: whether to remove it at the end; else it expires, and what it leaves behind is known to be orphaned.
        runs: asked at each renewal: ids of the flow runs that a worker has. None: it does not tell.
    """
    settings = current_settings()
    keeper = _Keeper(None, name, settings.lease_seconds, owner=owner, settings=settings, at_end=forget, runs=runs)
    keeper.start()
    try:
        yield
    finally:
        keeper.stop()


@contextmanager
def owned(engine: Engine, name: str, owner: str, settings: Settings, deadline_seconds: float) -> Iterator[Lease | None]:
    """Own a lease while the block runs, or None when another owner had it and gave it back meanwhile: look again.

    An expired lease is taken over after it was watched for half of its time without a sign of its owner: after an
    outage of the database all leases have expired, and their owners renew them first.

    Raises:
        LeaseHeld: another owner has it for longer than the deadline, and gives signs of life.
    """
    watched: tuple[int, float] | None = None
    over: int | None = None
    end = time.monotonic() + deadline_seconds
    waited = False
    while isinstance(found := take(engine, name, owner, settings.lease_seconds, over=over), Held):
        now = time.monotonic()
        if now > end and not found.expired:  # else it is about to be given back, or to be taken over
            raise LeaseHeld(f"{name} is held by {found.owner} for more than {deadline_seconds:.0f} s.")
        if not found.expired:
            watched = over = None
        elif watched is None or watched[0] != found.token:
            watched = (found.token, now)
        elif now - watched[1] >= settings.lease_seconds / 2:
            over = found.token
        waited = True
        time.sleep(random.uniform(0.2, 0.4))  # noqa: S311 - jitter
    if waited and over is None:
        release(engine, found)
        yield None
        return
    with kept(engine, found, settings.lease_seconds) as lease:
        yield lease


def worker_name(pool: str) -> str:
    """A name that no other start of a worker has: a flow run says by it which process took it."""
    return f"{pool}-{socket.gethostname()[:40].lower()}-{random.randrange(16**6):06x}"  # noqa: S311 - no secret


class _Keeper(threading.Thread):
    """Claims a name if it has no lease yet, and renews it until it is stopped or the lease is lost."""

    def __init__(
        self,
        engine: Engine | None,
        lease: Lease | str,
        seconds: float,
        owner: str = "",
        settings: Settings | None = None,
        at_end: bool = True,
        runs: Callable[[], list[str]] | None = None,
    ) -> None:
        super().__init__(name=f"lease {lease if isinstance(lease, str) else lease.name}", daemon=True)
        self._engine, self._seconds, self._owner, self._settings = engine, seconds, owner, settings
        self._wanted = lease if isinstance(lease, str) else lease.name
        self._lease = None if isinstance(lease, str) else lease
        self._end, self._at_end, self._runs = threading.Event(), at_end, runs

    def run(self) -> None:
        pause = 0.0 if self._lease is None else self._seconds / RENEWALS
        trouble = False
        while not self._end.wait(pause):
            pause, began = self._seconds / RENEWALS, time.monotonic()
            try:
                if not self._renewed():
                    log.warning("lease lost", extra={"action": "lease.lost", "lease": self._wanted})
                    return
                trouble = False
                # After one that took long, what it tells is old.
                pause = max(0.0, pause - (time.monotonic() - began))
            except KycflowError as exc:
                pause = min(pause, RETRY_SECONDS)
                if not trouble:
                    log.warning("lease not renewed: %s", exc, extra={"action": "lease.trouble", "lease": self._wanted})
                trouble = True

    def _renewed(self) -> bool:
        if self._engine is None:
            self._engine = database_for(self._settings or current_settings())
        runs = None if self._runs is None else self._runs()
        if self._lease is None:
            self._lease = claim(self._engine, self._wanted, self._owner, self._seconds, runs)
            return True
        return renew(self._engine, self._lease, self._seconds, runs)

    def stop(self) -> None:
        """End the thread and give the lease back. A database that does not answer lets it expire."""
        self._end.set()
        self.join(RETRY_SECONDS)
        if self._lease is None or self._engine is None or not self._at_end:
            return
        try:
            release(self._engine, self._lease, forget=bool(self._owner))
        except KycflowError as exc:
            log.warning("lease not released: %s", exc, extra={"action": "lease.trouble", "lease": self._wanted})
