"""What people see in the Prefect UI when a session has ended, beside its run's state: a tag, and an artifact."""

import asyncio
import logging
import time

from prefect.client.schemas.actions import ArtifactCreate
from prefect.client.schemas.objects import FlowRun
from prefect.context import FlowRunContext

from tasks.contracts import Comparison, Decision
from tasks.database import database_for
from tasks.database.comparisons import get_comparison
from tasks.dispatch import AGAIN_SECONDS, prefect_api, worth_telling_again
from tasks.errors import OrchestratorUnavailable
from tasks.retries import patiently
from tasks.settings import current_settings
from tasks.states import DECIDED, decision_tags, next_step

log = logging.getLogger(__name__)


async def publish_decision(decision: Decision, run: FlowRun | None = None) -> None:
    """Give the run the decision's tag and artifact: ids, sums and the reason, never a score or a picture.

    Args:
        run: whose they are. None: the current run's.

    Never raises: the decision stands whether or not it is shown. While Prefect is away, it is tried again: who sets the
    run's last state waits for that, too.
    """
    try:
        if run is None:
            context = FlowRunContext.get()
            run = None if context is None else context.flow_run
        comparison = None
        if (key := decision.comparison_key) is not None:
            comparison = await patiently(
                7, lambda: asyncio.to_thread(get_comparison, database_for(current_settings()), key)
            )
        artifact = ArtifactCreate(
            key=f"decision-{decision.session_id}-{decision.attempt}".replace("_", "-"),
            type="markdown",
            data=markdown(decision, comparison),
            description=f"{DECIDED[decision.decision]}: {decision.reason.value}",
            flow_run_id=None if run is None else run.id,
        )
        await _publish(artifact, run, decision)
    except Exception:
        ids = {"session_id": decision.session_id, "attempt": decision.attempt}
        log.exception("the decision is not shown in full", extra={"action": "decision.unshown", **ids})


async def _publish(artifact: ArtifactCreate, run: FlowRun | None, decision: Decision) -> None:
    began = time.monotonic()
    while True:
        try:
            async with prefect_api() as client:
                if run is not None:
                    await client.update_flow_run(run.id, tags=decision_tags(run.tags, decision.decision))
                await client.create_artifact(artifact)
            return
        except OrchestratorUnavailable as exc:
            if not worth_telling_again(exc.__cause__, began):
                raise
        await asyncio.sleep(AGAIN_SECONDS)


def markdown(decision: Decision, comparison: Comparison | None) -> str:
    """The artifact's text, Markdown."""
    session_id = decision.session_id
    rows = [
        ("Session", f"`{session_id}`, attempt {decision.attempt}"),
        ("Decision", f"**{DECIDED[decision.decision]}**"),
        ("Reason", f"`{decision.reason.value}`"),
        ("Next step", next_step(decision.decision)),
        ("Decided", f"{decision.decided_at:%Y-%m-%d %H:%M:%S} UTC"),
    ]
    if comparison is None:
        return _page(decision, rows)
    result, engine = comparison.result, comparison.engine
    # A wide cell lies over the column beside it in version 2 of the UI, and is cut off in version 1.
    weights = "<br>".join(f"{name} `{sha256[:12]}…`" for name, sha256 in engine.weights_sha256.items())
    stages = ", ".join(f"{stage} {seconds:.2f}" for stage, seconds in result.seconds.items() if stage != "total")
    rows += [
        ("Scores", f"`kycflow status {session_id}`<br>`GET /sessions/{session_id}`"),
        ("Frames", f"{len(result.frames)} used of {result.frames_looked_at} looked at"),
        ("Models", f"{engine.recogniser} with {engine.detector}, {engine.backend}, on {result.device}"),
        ("Weights", weights),
        ("Time", f"{result.seconds.get('total', sum(result.seconds.values())):.2f} s: {stages}"),
        ("Computation started", "once" if comparison.computations == 1 else f"{comparison.computations} times"),
        ("Comparison", f"`{comparison.comparison_key}`"),
    ]
    picture = comparison.picture_key and f"\n\nPicture for reviewers, in storage:\n\n```\n{comparison.picture_key}\n```"
    return _page(decision, rows) + (picture or "")


def _page(decision: Decision, rows: list[tuple[str, str]]) -> str:
    lines = [("What", "Value"), ("---", "---"), *rows]
    return f"# {DECIDED[decision.decision]}\n\n" + "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
