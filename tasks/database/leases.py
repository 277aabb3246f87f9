"""Leases: one owner a name, for a while. Times are the database's, so that no machine's clock decides.

A lease is never taken over just because it has expired: the database may have been away, and its owner with it. Who
wants it watches it first (`tasks/leasing.py`), and then says which token it takes over from.
"""

import random
from typing import NamedTuple

from sqlalchemy import ColumnElement, Engine, delete, literal, or_, select, update
from sqlalchemy.orm import Session

from tasks.database.engine import reading, writing
from tasks.database.insert import insert_once
from tasks.database.status import trace
from tasks.database.tables import LeaseRow
from tasks.database.types import clock
from tasks.errors import LeaseLost

COMPARISON = "comparison:"
"""What the names of comparisons' leases begin with."""


def comparison_lease(key: str) -> str:
    """Name of the lease that the run which computes a comparison keeps."""
    return f"{COMPARISON}{key}"


class Lease(NamedTuple):
    """A lease that is ours. Its token is proved again by whoever writes under it."""

    name: str
    token: int


class Held(NamedTuple):
    """A lease as somebody holds it."""

    owner: str
    token: int
    expired: bool
    runs: frozenset[str] | None = None
    """The flow runs that a worker has, as it tells with its sign of life."""


def take(engine: Engine, name: str, owner: str, seconds: float, *, over: int | None = None) -> Lease | Held:
    """Take a lease that is free, or has expired and still has the token `over`; else who holds it.

    Args:
        seconds: how long it is ours, unless it is renewed.
    """
    with writing(engine) as session:
        first = _first_token()
        if insert_once(session, LeaseRow, name=name, owner=owner, token=first, expires_at=clock(seconds)):
            return Lease(name, first)
        free: ColumnElement[bool] = LeaseRow.expires_at.is_(None)
        if over is not None:
            free = or_(free, (LeaseRow.expires_at <= clock()) & (LeaseRow.token == over))
        token = session.scalar(
            update(LeaseRow)
            .where(LeaseRow.name == name, free)
            .values(owner=owner, token=LeaseRow.token + 1, expires_at=clock(seconds))
            .returning(LeaseRow.token)
        )
        if token is not None:
            if over is not None:
                key = name.removeprefix(COMPARISON) if name.startswith(COMPARISON) else None
                trace(session, "lease_taken_over", by=owner, comparison_key=key, detail=f"{name}, token {token}")
            return Lease(name, token)
        # It may have been released just now: whoever asks comes back.
        return look(session, [name]).get(name, Held("nobody", 0, expired=False))


def claim(engine: Engine, name: str, owner: str, seconds: float, runs: list[str] | None = None) -> Lease:
    """Take a lease from whoever has it: for a sign of life, where the latest owner counts."""
    with writing(engine) as session:
        insert_once(session, LeaseRow, name=name, owner=owner, token=_first_token(), expires_at=None)
        token = session.scalars(
            update(LeaseRow)
            .where(LeaseRow.name == name)
            .values(owner=owner, token=LeaseRow.token + 1, expires_at=clock(seconds), runs=runs)
            .returning(LeaseRow.token)
        ).one()
        return Lease(name, token)


def _first_token() -> int:
    """Anywhere: a name that was forgotten and comes again gets no token that somebody may still hold."""
    return random.randrange(1, 2**48)  # noqa: S311 - no secret


def renew(engine: Engine, lease: Lease, seconds: float, runs: list[str] | None = None) -> bool:
    """Whether it is still ours; if so, for so many seconds more. An expired one that nobody took is still ours."""
    with writing(engine) as session:
        mine = (LeaseRow.name == lease.name) & (LeaseRow.token == lease.token) & LeaseRow.expires_at.is_not(None)
        renewed = update(LeaseRow).where(mine).values(expires_at=clock(seconds), runs=runs).returning(LeaseRow.token)
        return session.execute(renewed).first() is not None


def release(engine: Engine, lease: Lease, *, forget: bool = False) -> None:
    """Give it back, if it is still ours. `forget` removes its row: for names that never come again."""
    with writing(engine) as session:
        mine = (LeaseRow.name == lease.name) & (LeaseRow.token == lease.token)
        session.execute(
            delete(LeaseRow).where(mine) if forget else update(LeaseRow).where(mine).values(expires_at=None)
        )


def break_leases(engine: Engine, owner: str) -> None:
    """Take all leases from an owner that is known to be gone or to be stopped: it can write nothing any more."""
    with writing(engine) as session:
        held = (LeaseRow.owner == owner) & LeaseRow.expires_at.is_not(None)
        session.execute(update(LeaseRow).where(held).values(token=LeaseRow.token + 1, expires_at=None))


def prove(session: Session, lease: Lease) -> None:
    """Hold the lease's row to the end of the transaction: what is written in it is written by the owner.

    Raises:
        LeaseLost: it belongs to somebody else now. Nothing may be written.
    """
    token = session.scalar(
        select(LeaseRow.token).where(LeaseRow.name == lease.name, LeaseRow.expires_at.is_not(None)).with_for_update()
    )
    if token != lease.token:
        raise LeaseLost(f"{lease.name} was taken over, its token is {token} and not {lease.token}: nothing is written.")


def look(session: Session, names: list[str]) -> dict[str, Held]:
    """Who holds these leases; a name that is free or unknown is left out."""
    expired = (LeaseRow.expires_at <= clock()).label("expired")
    rows = session.execute(
        select(LeaseRow.name, LeaseRow.owner, LeaseRow.token, expired, LeaseRow.runs).where(
            LeaseRow.name.in_(names), LeaseRow.expires_at.is_not(None)
        )
    )
    return {
        name: Held(owner, token, bool(gone), None if runs is None else frozenset(runs))
        for name, owner, token, gone, runs in rows
    }


def holders(engine: Engine, names: list[str]) -> dict[str, Held]:
    """See `look`: in a transaction of its own."""
    with reading(engine) as session:
        return look(session, names)


def told_runs(engine: Engine) -> set[str]:
    """The flow runs that living workers have, as they tell."""
    with reading(engine) as session:
        alive = (LeaseRow.expires_at > clock()) & LeaseRow.runs.is_not(None)
        return {run for runs in session.scalars(select(LeaseRow.runs).where(alive)) for run in runs or ()}


def forget_expired(engine: Engine, seconds: float) -> int:
    """Remove the signs of life that ended so long ago; how many. Comparisons' leases stay: their tokens must grow."""
    with writing(engine) as session:
        old = (LeaseRow.expires_at <= clock(-seconds)) & ~LeaseRow.name.startswith(COMPARISON)
        return len(session.execute(delete(LeaseRow).where(old).returning(literal(1))).all())
