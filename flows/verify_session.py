"""The story of one session's attempt: wait for both files, compare them, decide once."""

import logging
from typing import Annotated, Any

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.runtime import flow_run
from pydantic import Field

from tasks.caching import WITHOUT_RESULT
from tasks.comparison import compared, compared_before
from tasks.contracts import Attempt, AttemptNumber, Decision, SessionId, comparison_key
from tasks.decision import decide, decided_before
from tasks.ending import cancel_session, cancelled, fail_session
from tasks.errors import KycflowError, RetryableError, SessionCancelled, SessionDeleted
from tasks.faces.models import engine_config
from tasks.files import find_files, found_before, open_session_attempt
from tasks.liveness import alive
from tasks.report import publish_decision
from tasks.settings import current_settings
from tasks.states import decided, unavailable
from tasks.telling import tell_compared, tell_found
from tasks.waiting import wait_for_comparison, wait_for_files, wake_follower

log = logging.getLogger(__name__)


def warm_up() -> None:
    """Load the engine. A resident worker calls this before it takes runs.

    Raises:
        ConfigurationError: weights are missing. ComputeUnavailable: there is no device for them.
    """
    from tasks.faces.engine import load_engine  # what deploys the flow has no engine

    settings = current_settings()
    load_engine(engine_config(settings), settings)


@flow(
    name="verify-session",
    flow_run_name="{session_id} attempt {attempt}",
    on_cancellation=[cancelled],
    **WITHOUT_RESULT,
)
async def verify_session(
    session_id: SessionId,
    attempt: AttemptNumber = 1,
    deadline_seconds: Annotated[int, Field(ge=5, le=604_800)] | None = None,
) -> State[Any]:
    """Check that the person in a session's selfie video is the person on its ID card.

    Ends in a state named after the decision: Match, Review, NoMatch, Rejected or Expired. While a file is missing the
    run waits as `AwaitingFiles`, without a process, until its files are there or its deadline is over; while another
    session's run compares the same two files, as `AwaitingComparison`. *Resume* has it look now. Running it again gives
    the decision that is there, and goes on with a session that was cancelled or had failed.

    Args:
        session_id: The session, as its client named it: a-z, 0-9, '-' and '_', at most 64, a letter or digit first.
        attempt: 1 for the session's first pair of files, 2 for the next, and so on.
        deadline_seconds: How long to wait for both files, in seconds. Only counts for a session that is not known yet;
            empty means the configured default.
    """
    with alive():
        try:
            found = await open_session_attempt(session_id, attempt, deadline_seconds, flow_run.id)
            if found.decision is not None:
                await _retraced(found, found.decision)
            while found.decision is None:
                found = await _judged(found)
        except RetryableError as error:
            return unavailable(error)
        except (SessionCancelled, SessionDeleted) as error:
            return await cancel_session(session_id, attempt, error)
        except Exception as error:
            # An execution that was overtaken by another one must not hide the other's decision.
            found = await fail_session(session_id, attempt, error)
            if found.decision is None:
                raise
            return decided(found.decision)
        # The decision stands whether or not its artifact can be shown.
        await publish_decision(found.decision)
        await wake_follower(found)
        return decided(found.decision)


async def _judged(found: Attempt) -> Attempt:
    """The attempt after one look: decided, unless a newer file came meanwhile. Ends the execution to wait."""
    comparison = None
    files = await find_files(found.session_id, found.attempt)
    tell_found(files)
    if files.id_image is not None and files.selfie_video is not None:
        engine = engine_config(current_settings())
        comparison = await compared(found.session_id, found.attempt, files.id_image, files.selfie_video, engine)
        if comparison is None:
            await wait_for_comparison(found, comparison_key(files.id_image.sha256, files.selfie_video.sha256, engine))
        tell_compared(comparison)
    elif not found.overdue():
        await wait_for_files(found.with_files(files))
    return await decide(found, files, comparison, flow_run.id)


async def _retraced(found: Attempt, decision: Decision) -> None:
    """Show in this run, too, what a decision rests on: its tasks end as Cached. What was erased is passed over.

    Never raises for what can pass or is erased: the decision stands.
    """
    try:
        await found_before(found)
        comparison = None
        if decision.comparison_key is not None:
            comparison = await compared_before(found, decision.comparison_key)
            if comparison is None:
                return
        await decided_before(found, decision, comparison.result if comparison else None, flow_run.id)
    except KycflowError as error:
        log.warning("what it rests on is not shown: %s", error, extra={"action": "session.not_retraced"})
