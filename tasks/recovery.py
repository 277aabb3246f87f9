"""What the sweep makes of what it sees. Pure: facts in, one action out."""

from enum import StrEnum
from uuid import UUID

from tasks.contracts import Attempt, Plain, Status
from tasks.states import AWAITING_COMPARISON, AWAITING_FILES, DECIDED, UNAVAILABLE

MOST_DEATHS = 2
"""A computation that took its process along so often is not tried again: its files may be what kills."""


class Run(Plain):
    """A flow run as Prefect's server tells of it, and whether its process gives a sign of life in SQL."""

    id: UUID
    state_id: UUID | None
    type: str
    """Prefect's state type: SCHEDULED, PENDING, RUNNING, CANCELLING, COMPLETED, FAILED, CRASHED, CANCELLED, PAUSED."""
    name: str
    alive: bool = True
    """For one that a worker has: whether its process, or the worker that is starting it, is there."""

    lingers: bool = False
    """Whether Prefect takes it for ended, and its process still gives a sign of life: another one must wait."""

    sweep: bool = False
    """Whether it is a sweep: it goes on until another one takes its place."""

    @property
    def busy(self) -> bool:
        """Whether a worker has it, or had it."""
        return self.type in {"PENDING", "RUNNING", "CANCELLING"}

    @property
    def lost(self) -> bool:
        """Whether a worker had it, and is gone."""
        return self.busy and not self.alive

    @property
    def unavailable(self) -> bool:
        """Whether it ended as storage, the database or Prefect was away."""
        return self.ended and self.name == UNAVAILABLE

    @property
    def ended(self) -> bool:
        """Whether it has a final state."""
        return self.type in {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}


class Facts(Plain):
    """What is known of an attempt beside itself and its flow run."""

    late: bool = False
    """Whether its deadline is over, by the database's clock."""
    arrived: bool | None = None
    """Whether a file lies in storage that counts and is not recorded. None: nobody has looked, or could."""
    stored: bool = False
    """Whether the comparison that it has asked for is in SQL."""
    computed: bool = False
    """Whether somebody computes it: holds its lease, and renews that."""
    deaths: int = 0
    """How often a process has died while its run computed it, now included."""


class Action(StrEnum):
    """What can be done about a run."""

    NOTHING = "nothing"
    START = "start"
    """It has no flow run: create it."""
    WAKE = "wake"
    """It waits for what is there: have it look now."""
    EXPIRE = "expire"
    """Its deadline is over, and a file is missing: decide so, and end its run."""
    RECOVER = "start again"
    """Its process is gone, or it ended by a fault that may pass: execute the same flow run again."""
    GIVE_UP = "give up"
    """It was started again too often, or failed for good: status `error`, with an alarm."""
    CANCEL = "cancel"
    """A person has cancelled its run, or is cancelling it: status `cancelled`. What its process still writes is
    refused. The run ends when its process has."""
    SHOW = "show its decision"
    """Its attempt is decided, and its state says otherwise: set the state that says so."""
    CRASH = "end"
    """Its process is gone, and it is not needed or was tried too often: end the run as Crashed, or Cancelled."""


def for_session(  # noqa: PLR0911 - a table of cases
    attempt: Attempt, run: Run | None, facts: Facts, *, most_recoveries: int
) -> Action:
    """What to do about an attempt, and its flow run if there is one."""
    if not attempt.open:
        return Action.NOTHING if run is None or run.lingers else _for_closed(attempt, run)
    if run is not None and run.type in {"CANCELLED", "CANCELLING"}:
        return Action.CANCEL
    if run is not None and ((run.busy and run.alive) or run.lingers):
        return Action.NOTHING
    if attempt.status is Status.AWAITING_FILES and facts.late and not facts.arrived:
        # Where storage does not tell, the file may be there.
        return Action.NOTHING if facts.arrived is None else Action.EXPIRE
    if run is None:
        return Action.START
    if run.name == AWAITING_FILES:
        return Action.WAKE if attempt.files.complete or facts.arrived else Action.NOTHING
    if run.name == AWAITING_COMPARISON:
        return Action.WAKE if facts.stored or not facts.computed else Action.NOTHING
    if run.lost and facts.deaths >= MOST_DEATHS and not facts.stored:
        return Action.GIVE_UP
    if run.unavailable:  # however long that takes
        return Action.RECOVER
    if run.lost or run.type in {"CRASHED", "COMPLETED"}:
        return Action.RECOVER if attempt.recoveries < most_recoveries else Action.GIVE_UP
    if run.type == "FAILED":
        return Action.GIVE_UP
    return Action.NOTHING


def _for_closed(attempt: Attempt, run: Run) -> Action:
    if attempt.status is Status.DECIDED and attempt.decision is not None:
        untrue = run.ended and run.name != DECIDED[attempt.decision.decision]
        if untrue or run.lost or run.type == "PAUSED":
            return Action.SHOW
    return Action.CRASH if run.lost else Action.NOTHING


def for_upkeep(run: Run) -> Action:
    """What to do about any other run: a schedule brings the next one."""
    return Action.CRASH if run.lost else Action.NOTHING
