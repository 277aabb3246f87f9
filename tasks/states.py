"""The states of a session's flow run: their names, and messages that tell the next step. For people, never parsed."""

from collections.abc import Collection
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

from prefect.client.schemas.objects import State
from prefect.states import Cancelled, Completed, Crashed, Paused, Scheduled

from tasks.contracts import Attempt, Decision, DecisionKind, FilePair, Reason
from tasks.errors import ComputeUnavailable, RetryableError

AWAITING_FILES = "AwaitingFiles"
AWAITING_COMPARISON = "AwaitingComparison"
WAITING = frozenset({AWAITING_FILES, AWAITING_COMPARISON})
"""States of a run that waits without a process, until it is woken."""
BESIDE = "FollowedElsewhere"
"""State of a run that a person started for a session which another run follows already."""
UNAVAILABLE = "Unavailable"
"""Name of a Crashed state: storage, the database or Prefect is away."""
DECIDED = {
    DecisionKind.MATCH: "Match",
    DecisionKind.REVIEW: "Review",
    DecisionKind.NO_MATCH: "NoMatch",
    DecisionKind.REJECTED: "Rejected",
    DecisionKind.EXPIRED: "Expired",
}
"""Names of the final state, by decision."""
_NEXT = {
    DecisionKind.MATCH: "Nothing is left to do",
    DecisionKind.REVIEW: "A person looks at the picture for reviewers",
    DecisionKind.NO_MATCH: "Nothing is left to do, unless the person tries again, in a further attempt",
    DecisionKind.REJECTED: "The person is told why, and tries again in a further attempt",
    DecisionKind.EXPIRED: "A further attempt can be opened",
}
DECISION_TAG = "decision:"
"""What the tag of a decided attempt's run begins with. The decision follows."""
OF_PREFECTS_OWN = {
    "Completed": frozenset({*DECIDED.values(), BESIDE}),
    "Paused": WAITING,
    "Crashed": frozenset({UNAVAILABLE}),
}
"""Our names, by the name that Prefect has for states of that type."""


def awaiting_files(attempt: Attempt) -> State[Any]:
    """The state of a run whose attempt has a file missing. Deadline and looks at storage are the sweep's, in SQL."""
    until, now = attempt.deadline_at.astimezone(UTC), datetime.now(UTC)
    moment = f"{until:%H:%M} UTC" if until.date() == now.date() else f"{until:%d %B %Y, %H:%M} UTC"
    wanted = _missing(attempt.files)
    if attempt.announced:
        return _waiting(AWAITING_FILES, f"Waiting for {wanted} until {moment}")
    folder = f"sessions/{attempt.session_id}/{attempt.attempt}/"
    said = f"This session was not known: it waits for {wanted} under {folder} until {moment}"
    return _waiting(AWAITING_FILES, said)


def awaiting_comparison() -> State[Any]:
    """The state of a run that wants a comparison which another session's run computes."""
    return _waiting(AWAITING_COMPARISON, "Waiting for another session with the same two files, which compares them")


def beside(waiting: State[Any]) -> State[Any]:
    """The final state of a run that would have to wait, and whose attempt another run follows."""
    return Completed(name=BESIDE, message=f"Another flow run follows this session. {waiting.message}")


def woken(why: str, due: datetime | None = None) -> State[Any]:
    """The state of a run that is to be executed, now unless it is due at another time.

    Args:
        why: begins a sentence: the state's message goes on with the next step.
    """
    message = f"{why}: the next free worker of its pool takes it"
    return Scheduled(scheduled_time=due or datetime.now(UTC), message=message)


def decided(decision: Decision) -> State[Any]:
    """The final state of a decided attempt's run. An answer is always Completed: only a fault of ours fails a run."""
    return ended_as(decision.decision, decision.reason)


def ended_as(decision: DecisionKind, reason: Reason) -> State[Any]:
    """The final state of a run whose attempt is decided so: no score is in it."""
    return Completed(name=DECIDED[decision], message=f"{reason.value}. {next_step(decision)}.")


def next_step(decision: DecisionKind) -> str:
    """What a decision asks of people, for them to read."""
    return _NEXT[decision]


def decision_tags(tags: Collection[str], decision: DecisionKind) -> list[str]:
    """A run's tags, with the one of its decision and without that of another."""
    return [*sorted(tag for tag in tags if not tag.startswith(DECISION_TAG)), f"{DECISION_TAG}{decision.value}"]


def unavailable(error: RetryableError) -> State[Any]:
    """The state of a run that ends by a fault that may pass: the sweep starts the same run again.

    As often as it takes, where a service is away; a device that was lost, or is full, may be so for this run alone.

    Not of type Failed: Prefect's server (3.8.8) makes that a retry in the same process where a run was woken before,
    as it does not count an execution after a pause; and no worker is ever offered the run again when that process ends.
    """
    message = f"{type(error).__name__}: {error}"
    if isinstance(error, ComputeUnavailable):
        return Crashed(message=message)
    return Crashed(name=UNAVAILABLE, message=message)


def swept(mended: int, why: str) -> State[Any]:
    """The final state of a sweep's run."""
    return Completed(message=f"{mended} mended, {why}")


def replaced(why: str, what_next: str = "the next worker starts another sweep") -> State[Any]:
    """The final state of a sweep's run whose process is gone, or is being ended. It is no fault."""
    return Cancelled(message=f"{why}: {what_next}")


def _waiting(name: str, message: str) -> State[Any]:
    # Rescheduled, so that *Resume* in the UI has a worker look and *Cancel* ends it at once. No timeout: Prefect would
    # end it as Failed. A key of its own, as Prefect refuses one that has been used.
    return Paused(name=name, message=message, reschedule=True, pause_key=str(uuid4()))


def _missing(files: FilePair) -> str:
    words = {"id_image": "the ID image", "selfie_video": "the selfie video"}
    return " and ".join(text for kind, text in words.items() if getattr(files, kind) is None) or "its files"
