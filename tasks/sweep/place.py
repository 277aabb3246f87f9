"""The place of the sweep that is at work: a lease, which the newest one has. Who keeps sweeps going looks at it."""

from sqlalchemy import Engine

from tasks.database.leases import Held, Lease, claim, holders, release, renew

PLACE = "sweep"
"""The lease's name. Its owner is the sweep's flow run."""
PLACE_SECONDS = 12
"""How long the place of a sweep that was killed is taken for its own. It renews every few seconds."""


def take_place(database: Engine, flow_run_id: str) -> Lease:
    """Take the place from whatever sweep has it.

    Raises:
        DatabaseUnavailable.
    """
    return claim(database, PLACE, flow_run_id, PLACE_SECONDS)


def keep_place(database: Engine, place: Lease) -> bool:
    """Whether the place is still its own, and no newer sweep's; then for PLACE_SECONDS more.

    Raises:
        DatabaseUnavailable.
    """
    return renew(database, place, PLACE_SECONDS)


def leave_place(database: Engine, place: Lease) -> None:
    """Give the place back, if it is still its own.

    Raises:
        DatabaseUnavailable.
    """
    release(database, place)


def at_work(database: Engine) -> Held | None:
    """Who has the place, expired or not; None when no sweep is at work.

    Raises:
        DatabaseUnavailable.
    """
    return holders(database, [PLACE]).get(PLACE)
