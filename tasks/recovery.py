"""What the sweep makes of what it sees. Pure: facts in, one action out."""

from datetime import datetime
from enum import StrEnum
from uuid import UUID

from tasks.contracts import Attempt, Plain

AWAITING_FILES = "AwaitingFiles"
AWAITING_COMPARISON = "AwaitingComparison"
MOST_DEATHS = 2
"""A computation that took its process along so often is not tried again: its files may be what kills."""
UNAVAILABLE = "Unavailable"
"""Name of a Failed state whose cause may pass."""


class Run(Plain):
    """A flow run as Prefect's server tells of it, and whether its process gives a sign of life in SQL."""

    id: UUID
    state_id: UUID | None
    type: str
    """Prefect's state type: SCHEDULED, PENDING, RUNNING, CANCELLING, COMPLETED, FAILED, CRASHED, CANCELLED, PAUSED."""
    name: str
    due: datetime | None = None
    """When a scheduled one is due."""
    run_count: int = 0
    alive: bool = True
    """For one that a worker has: whether its process, or the worker that is starting it, is there."""

    lingers: bool = False
    """Whether Prefect takes it for ended, and its process still gives a sign of life: another one must wait."""

    @property
    def lost(self) -> bool:
        """Whether a worker had it, and is gone."""
        return self.type in {"PENDING", "RUNNING", "CANCELLING"} and not self.alive

    @property
    def failed_for_now(self) -> bool:
        """Whether it ended by a fault that may pass, and its process is gone."""
        if self.lingers:
            return False
        return self.type == "CRASHED" or (self.type == "FAILED" and self.name == UNAVAILABLE)

    @property
    def ended(self) -> bool:
        """Whether it has a final state."""
        return self.type in {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}

    def spent(self, most_recoveries: int) -> bool:
        """Whether it has ended, or is being cancelled, and is not started again by itself."""
        again = self.lingers or (self.failed_for_now and self.run_count <= most_recoveries)
        return self.type == "CANCELLING" or (self.ended and not again)


class Action(StrEnum):
    """What can be done about a run."""

    NOTHING = "nothing"
    START = "start"
    """It has no flow run: create it."""
    WAKE = "wake"
    """It waits for what is there: have it look now."""
    RECOVER = "start again"
    """Its process is gone, or it ended by a fault that may pass: execute the same flow run again."""
    GIVE_UP = "give up"
    """It was started again too often, or failed for good: status `error`, with an alarm."""
    CANCEL = "cancel"
    """A person has cancelled its run: status `cancelled`."""
    COMPLETE = "complete"
    """Its row was stored before its process was lost: end the run, compute nothing."""
    CRASH = "end"
    """Its process is gone, and it is not needed or was tried too often: end the run as Crashed, or Cancelled."""


def for_session(  # noqa: PLR0911 - a table of cases
    attempt: Attempt,
    run: Run | None,
    comparison: Run | None,
    *,
    stored: bool,
    deaths: int,
    now: datetime,
    most_recoveries: int,
) -> Action:
    """What to do about an attempt.

    Args:
        run: the attempt's flow run; None if there is none.
        comparison: the flow run of the comparison that it waits for; None if there is none.
        stored: whether that comparison is in SQL.
        deaths: how often a process has died while `run` itself computed the comparison, now included.
    """
    if not attempt.open:
        if run is None or not run.lost:
            return Action.NOTHING
        if attempt.decision is not None and run.type != "CANCELLING" and attempt.recoveries < most_recoveries:
            return Action.RECOVER  # it shows the decision, and ends
        return Action.CRASH
    if run is None:
        return Action.START
    if run.type == "CANCELLED" or (run.type == "CANCELLING" and run.lost):
        return Action.CANCEL
    if run.name == AWAITING_FILES:
        late = attempt.deadline_at <= now and (run.due is None or run.due > now)
        return Action.WAKE if attempt.files.complete or late else Action.NOTHING
    if run.name == AWAITING_COMPARISON:
        spent = comparison is not None and comparison.spent(most_recoveries)
        return Action.WAKE if stored or spent else Action.NOTHING
    if run.lost and deaths >= MOST_DEATHS and not stored:
        return Action.GIVE_UP
    if run.lost or run.failed_for_now or run.type == "COMPLETED":
        return Action.RECOVER if attempt.recoveries < most_recoveries else Action.GIVE_UP
    if run.type == "FAILED" and not run.lingers:
        return Action.GIVE_UP
    return Action.NOTHING


def for_comparison(run: Run, *, stored: bool, deaths: int, most_recoveries: int) -> Action:
    """What to do about a run of `compare-faces`.

    Args:
        stored: whether its comparison is in SQL.
        deaths: how often a process has died while this run computed in it, now included.
    """
    if run.lost:
        if stored:
            return Action.COMPLETE
        if deaths >= MOST_DEATHS and run.type != "CANCELLING":
            return Action.GIVE_UP
        again = run.run_count <= most_recoveries and run.type != "CANCELLING"
        return Action.RECOVER if again else Action.CRASH
    again = run.failed_for_now and not stored and not run.spent(most_recoveries)
    return Action.RECOVER if again else Action.NOTHING


def for_upkeep(run: Run) -> Action:
    """What to do about any other run: a schedule brings the next one."""
    return Action.CRASH if run.lost else Action.NOTHING
