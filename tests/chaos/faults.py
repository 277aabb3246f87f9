"""The faults of a chaos run: workers killed at chosen moments, servers killed and restarted, storage away."""

import threading
import time
from dataclasses import dataclass, field
from typing import Any

import psutil
from rich.console import Console
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from tasks.database import database_for
from tests.chaos.plan import Moment
from tests.chaos.world import World

# Looking closely takes the processor from what is looked at.
LOOK_SECONDS = 0.03
OUTAGE_SECONDS = 10
YOUNG_SECONDS = 1

# Signs of life are leases named run:<flow run id>; a comparison's lease is owned by its flow run's id.
_LIVE = "name LIKE 'run:%' AND expires_at IS NOT NULL"
_QUERIES = {
    # Its run is at work, and somebody has asked for a comparison that is not there.
    Moment.WAITING: f"""SELECT a.flow_run_id FROM attempts a JOIN leases l ON l.name = 'run:' || a.flow_run_id
        LEFT JOIN comparisons c ON c.comparison_key = a.comparison_key
        WHERE a.status = 'in_progress' AND a.comparison_run_id IS NOT NULL AND c.finished_at IS NULL
        AND {_LIVE}""",
    Moment.BEFORE_STATE: f"""SELECT a.flow_run_id FROM attempts a JOIN leases l ON l.name = 'run:' || a.flow_run_id
        WHERE a.status = 'decided' AND {_LIVE}""",
    # A comparison's run gives its sign of life, and owns nothing yet.
    Moment.BEFORE_LEASE: f"""SELECT a.comparison_run_id FROM attempts a
        JOIN leases l ON l.name = 'run:' || a.comparison_run_id
        LEFT JOIN comparisons c ON c.comparison_key = a.comparison_key
        WHERE a.status = 'in_progress' AND c.comparison_key IS NULL AND {_LIVE}""",
    Moment.COMPUTING: """SELECT c.started_by FROM comparisons c
        JOIN leases l ON l.name = 'comparison:' || c.comparison_key
        WHERE c.finished_at IS NULL AND l.expires_at IS NOT NULL AND c.started_by = 'flow run ' || l.owner""",
    Moment.STORED: f"""SELECT a.comparison_run_id FROM attempts a
        JOIN leases l ON l.name = 'run:' || a.comparison_run_id
        JOIN comparisons c ON c.comparison_key = a.comparison_key
        WHERE c.finished_at IS NOT NULL AND {_LIVE}""",
}
_COMPUTING = """SELECT c.comparison_key, c.computations FROM comparisons c
    JOIN leases l ON l.name = 'comparison:' || c.comparison_key
    WHERE c.finished_at IS NULL AND c.computations > 0 AND l.expires_at IS NOT NULL"""


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
    over: threading.Event = field(default_factory=threading.Event)

    def kill_worker(self, moment: Moment, seconds: float) -> bool:
        """Kill a worker with all its flow runs when this moment is seen; False if it was not, for so long."""
        part = f"worker-{moment.pool}"
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and not self.over.is_set():
            seen = self._starting(part) if moment is Moment.STARTING else self._seen(moment)
            if seen:
                self.world.kill(part)
                self.kills[moment] = self.kills.get(moment, 0) + 1
                self._note(f"worker killed, {moment.value}")
                if moment.pool == "gpu":
                    self._note_hits()
                return True
            time.sleep(LOOK_SECONDS if moment is not Moment.STARTING else YOUNG_SECONDS / 5)
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

    def storage_outage(self) -> None:
        """Storage answers 503."""
        with self.world.proxy.failing():
            time.sleep(OUTAGE_SECONDS)
        self._note(f"storage answered 503 for {OUTAGE_SECONDS} s, {self.world.proxy.refused} requests refused")

    def _note(self, what: str) -> None:
        self.at.append(time.time())
        self.console.print(f"[dim]{time.strftime('%H:%M:%S')}[/] {what}", highlight=False)

    def _seen(self, moment: Moment) -> bool:
        return bool(self._ask(_QUERIES[moment]))

    def _note_hits(self) -> None:
        # The process is dead; a write that it had sent may still be on its way through the database.
        time.sleep(0.1)
        for key, computations in self._ask(_COMPUTING):
            if (str(key), int(computations)) not in self.hit:
                self.hit.add((str(key), int(computations)))
                threading.Thread(target=self._time_recovery, args=(key, computations, time.monotonic())).start()

    def _time_recovery(self, key: str, computations: int, killed: float) -> None:
        while not self.over.wait(0.1):
            started = self._ask("SELECT computations FROM comparisons WHERE comparison_key = :key", key=key)
            if started and started[0][0] > computations:
                self.recovery_seconds.append(time.monotonic() - killed)
                return

    def _starting(self, part: str) -> bool:
        """Whether the worker has just started a process: too young to give a sign of life."""
        try:
            children = psutil.Process(self.world.stack.pid(part)).children()
            return any(time.time() - child.create_time() < YOUNG_SECONDS for child in children)
        except psutil.NoSuchProcess:
            return False

    def _ask(self, query: str, **values: object) -> list[tuple[Any, ...]]:
        try:
            with database_for(self.world.settings).connect() as connection:
                return [tuple(row) for row in connection.execute(text(query), values)]
        except DBAPIError:
            return []  # while the database is away, nothing is seen
