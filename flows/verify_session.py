"""The story of one session's attempt: wait for both files, have them compared, decide once."""

from typing import Annotated, Any

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.runtime import flow_run
from pydantic import Field

from tasks.comparison import compared
from tasks.contracts import Attempt, AttemptNumber, SessionId, comparison_key
from tasks.decision import decide
from tasks.ending import cancel_session, cancelled, fail_session
from tasks.errors import ComparisonCancelled, RetryableError, SessionCancelled, SessionDeleted
from tasks.faces.models import engine_config
from tasks.files import find_files, open_session_attempt
from tasks.liveness import alive
from tasks.report import final_state, publish_decision, unavailable
from tasks.settings import current_settings
from tasks.waiting import wait_for_comparison, wait_for_files


@flow(name="verify-session", flow_run_name="{session_id} attempt {attempt}", on_cancellation=[cancelled])
async def verify_session(
    session_id: SessionId,
    attempt: AttemptNumber = 1,
    deadline_seconds: Annotated[int, Field(ge=5, le=604_800)] | None = None,
) -> State[Any]:
    """Check that the person in a session's selfie video is the person on its ID card.

    Ends in a state named after the decision: Match, Review, NoMatch, Rejected or Expired. While a file is missing the
    run waits as `AwaitingFiles`, without a process, until an upload wakes it, its next look is due, or its deadline is
    over; for a comparison that takes long it waits as `AwaitingComparison`. Running it again gives the decision that is
    there, and goes on with a session that was cancelled or had failed.

    Args:
        session_id: The session, as its client named it: a-z, 0-9, '-' and '_', at most 64, a letter or digit first.
        attempt: 1 for the session's first pair of files, 2 for the next, and so on.
        deadline_seconds: How long to wait for both files, in seconds. Only counts for a session that is not known yet;
            empty means the configured default.
    """
    with alive():
        try:
            found = await open_session_attempt(session_id, attempt, deadline_seconds, flow_run.id)
            while found.decision is None:
                found = await _judged(found)
        except RetryableError as error:
            return unavailable(error)
        except (ComparisonCancelled, SessionCancelled, SessionDeleted) as error:
            return await cancel_session(session_id, attempt, error)
        except Exception as error:
            # An execution that was overtaken by another one must not hide the other's decision.
            found = await fail_session(session_id, attempt, error)
            if found.decision is None:
                raise
            return final_state(found.decision)
        # The decision stands whether or not its artifact can be shown.
        await publish_decision(found.decision)
        return final_state(found.decision)


async def _judged(found: Attempt) -> Attempt:
    """The attempt after one look: decided, unless a newer file came meanwhile. Ends the execution to wait."""
    comparison = None
    files = await find_files(found.session_id, found.attempt)
    if files.id_image is not None and files.selfie_video is not None:
        engine = engine_config(current_settings())
        asked = (found.session_id, found.attempt, files.id_image, files.selfie_video, engine)
        comparison = await compared(*asked)
        if comparison is None:
            await wait_for_comparison(comparison_key(files.id_image.sha256, files.selfie_video.sha256, engine))
    elif not found.overdue():
        await wait_for_files(found.with_files(files))
    return await decide(found.session_id, found.attempt, files, comparison, flow_run.id)
