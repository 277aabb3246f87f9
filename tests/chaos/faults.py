"""The faults of a chaos run: workers killed at chosen moments, servers killed and restarted, storage away."""

import threading
import time
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console
from sqlalchemy import Executable, Select, and_, exists, select, text
from sqlalchemy.exc import DBAPIError

from deployments.provision import GPU
from deployments.stack import SOON_SECONDS
from tasks.contracts import Status
from tasks.database import database_for
from tasks.database.tables import AttemptRow, ComparisonRow, LeaseRow
from tasks.database.types import clock
from tasks.sweep.place import PLACE
from tests.chaos.plan import Away, Moment
from tests.chaos.world import World

# Looking closely takes the processor from what is looked at.
LOOK_SECONDS = 0.03
REST_SECONDS = SOON_SECONDS + 2
"""Between two kills of a worker: one that ends as soon as it is started, its supervisor starts later each time."""
AFTERWARDS_SECONDS = 10
"""After an outage, in which clients send again what was refused meanwhile."""
CAUGHT_UP_SECONDS = 180
JUST_NOW_SECONDS = 0.4
"""What happened so short a time ago has not been told to anybody else."""


def _query(moment: Moment) -> Select[Any]:
    """Finds something when it is the moment."""
    asked = and_(AttemptRow.status == Status.IN_PROGRESS, AttemptRow.comparison_key.is_not(None))
    row = ComparisonRow.comparison_key
    with_row = select(row).join(AttemptRow, AttemptRow.comparison_key == row)
    just_now = clock(-JUST_NOW_SECONDS)
    match moment:
        case Moment.STARTING:
            begun = and_(AttemptRow.status == Status.IN_PROGRESS, AttemptRow.comparison_key.is_(None))
            return select(AttemptRow.session_id).where(begun, AttemptRow.flow_run_id.is_not(None))
        case Moment.SWEEPING:
            return select(LeaseRow.name).where(LeaseRow.name == PLACE, LeaseRow.expires_at.is_not(None))
        case Moment.BEFORE_STATE:
            return select(AttemptRow.session_id).where(AttemptRow.closed_at > just_now)
        case Moment.BEFORE_LEASE:
            return select(AttemptRow.session_id).where(asked, ~exists().where(row == AttemptRow.comparison_key))
        case Moment.COMPUTING:  # for the first time: killed twice, it would not be tried again
            lease = and_(LeaseRow.name == "comparison:" + row, LeaseRow.expires_at.is_not(None))
            own = and_(ComparisonRow.started_by == "flow run " + LeaseRow.owner, ComparisonRow.computations == 1)
            return select(row).join(LeaseRow, lease).where(ComparisonRow.finished_at.is_(None), own)
        case Moment.STORED:
            return with_row.where(asked, ComparisonRow.finished_at > just_now)


_COMPUTING = text("""SELECT c.comparison_key, c.computations FROM comparisons c
    JOIN leases l ON l.name = 'comparison:' || c.comparison_key
    WHERE c.finished_at IS NULL AND c.computations > 0 AND l.expires_at IS NOT NULL""")

_STARTS = text("SELECT computations FROM comparisons WHERE comparison_key = :key")

_BOTH_FILES = text("""SELECT a.session_id, a.attempt FROM attempts a
    JOIN uploads u ON u.session_id = a.session_id AND u.attempt = a.attempt
    WHERE a.closed_at IS NULL GROUP BY a.session_id, a.attempt HAVING count(DISTINCT u.kind) = 2""")


@dataclass
class Faults:
    """Brings the faults, and keeps what they were."""

    world: World
    console: Console
    at: list[float] = field(default_factory=list)
    """Unix time of each fault's end."""
    kills: dict[Moment, int] = field(default_factory=dict)
    hit: set[tuple[str, int]] = field(default_factory=set)
    """Computations that were cut off: key, and number of the start."""
    recovery_seconds: list[float] = field(default_factory=list)
    """From the kill of a computation to the next start of the same one."""
    outage_seconds: list[float] = field(default_factory=list)
    """From each outage's end to the decision on the last session that had its files by then, or soon after."""
    over: threading.Event = field(default_factory=threading.Event)
    _killed: dict[str, float] = field(default_factory=dict)
    """When the worker of a pool was killed last."""

    def kill_worker(self, moment: Moment, seconds: float) -> bool:
        """Kill a worker with all its flow runs when this moment is seen; False if it was not, for so long."""
        pool = moment.pool
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and not self.over.is_set():
            # One that computes again after a kill is left alone: killed twice, it would not be tried again.
            tried = pool == GPU and any(computations > 1 for _, computations in self._ask(_COMPUTING))
            rested = time.monotonic() - self._killed.get(pool, -REST_SECONDS) >= REST_SECONDS
            if rested and not tried and self._ask(_query(moment)):
                self.world.kill(f"worker-{pool}")
                self._killed[pool] = time.monotonic()
                self.kills[moment] = self.kills.get(moment, 0) + 1
                self._note(f"worker killed, {moment.value}")
                if pool == GPU:
                    self._note_hits()
                return True
            time.sleep(LOOK_SECONDS)
        return False

    def kill_server(self) -> None:
        """Kill Prefect's server; the supervisor starts it again."""
        self.world.kill("prefect-server")
        self._note("Prefect's server killed")

    def restart_database(self) -> None:
        """Restart PostgreSQL, with all connections cut."""
        if self.world.database is not None:
            seconds = self.world.database.restart()
            self._note(f"PostgreSQL restarted, away for {seconds:.1f} s")

    def away(self, what: Away, seconds: float) -> None:
        """Take a service away for that time, and let what came meanwhile be decided before the next fault."""
        match what:
            case Away.PREFECT:
                self.world.prefect_away(seconds)
            case Away.DATABASE:
                self.world.database_away(seconds)
            case Away.STORAGE:
                self.world.storage_away(seconds)
        self._note(f"{what.value} was away for {seconds:g} s")
        self._rest()

    def _rest(self) -> None:
        back, left = time.monotonic(), set[tuple[Any, ...]]()
        last = back
        while (now := time.monotonic()) - back < CAUGHT_UP_SECONDS:
            found = set(self._ask(_BOTH_FILES))
            if now - back < AFTERWARDS_SECONDS:
                left |= found
                last = now if found else last
            elif left := left & found:
                last = now
            else:
                break
            time.sleep(0.5)
        self.outage_seconds.append(last - back)

    def _note(self, what: str) -> None:
        self.at.append(time.time())
        self.console.print(f"[dim]{time.strftime('%H:%M:%S')}[/] {what}", highlight=False)

    def _note_hits(self) -> None:
        # The process is dead; a write that it had sent may still be on its way through the database.
        time.sleep(0.1)
        for key, computations in self._ask(_COMPUTING):
            if (str(key), int(computations)) not in self.hit:
                self.hit.add((str(key), int(computations)))
                threading.Thread(target=self._time_recovery, args=(key, computations, time.monotonic())).start()

    def _time_recovery(self, key: str, computations: int, killed: float) -> None:
        while not self.over.wait(0.1):
            started = self._ask(_STARTS, key=key)
            if started and started[0][0] > computations:
                self.recovery_seconds.append(time.monotonic() - killed)
                return

    def _ask(self, query: Executable, **values: object) -> list[tuple[Any, ...]]:
        try:
            with database_for(self.world.settings).connect() as connection:
                return [tuple(row) for row in connection.execute(query, values)]
        except DBAPIError:
            return []  # while the database is away, nothing is seen
