"""What people see in the Prefect UI when a session has ended: a state named after the decision, and an artifact."""

import asyncio
import logging
from collections.abc import Sequence
from typing import Any

from prefect.artifacts import acreate_markdown_artifact
from prefect.client.schemas.objects import State
from prefect.states import Completed, Failed

from tasks.contracts import Comparison, Decision, DecisionKind
from tasks.database import database_for
from tasks.database.comparisons import get_comparison
from tasks.dispatch import prefect_errors
from tasks.errors import RetryableError
from tasks.faces.quality import figures
from tasks.recovery import UNAVAILABLE
from tasks.settings import current_settings

log = logging.getLogger(__name__)

_FACES = (
    *("Face", "Similarity", "Weight"),
    *("Eye distance", "Sharpness", "Brightness", "Contrast", "Yaw", "Pitch", "Confidence"),
)
STATE_NAMES = {
    DecisionKind.MATCH: "Match",
    DecisionKind.REVIEW: "Review",
    DecisionKind.NO_MATCH: "NoMatch",
    DecisionKind.REJECTED: "Rejected",
    DecisionKind.EXPIRED: "Expired",
}


def final_state(decision: Decision) -> State[Any]:
    """The run's final state. An answer is always Completed: only a fault of ours fails a run."""
    return Completed(name=STATE_NAMES[decision.decision], message=_reason(decision))


def unavailable(error: RetryableError) -> State[Any]:
    """The state of a run that ends by a fault that may pass: the sweep starts the same run again."""
    return Failed(name=UNAVAILABLE, message=f"{type(error).__name__}: {error}")


def _reason(decision: Decision) -> str:
    score = "" if decision.similarity is None else f", similarity {decision.similarity:.3f}"
    return f"{decision.reason.value}{score}"


async def publish_decision(decision: Decision) -> None:
    """Write the run's artifact: ids, sums and scores only, never a picture.

    Never raises: the decision stands whether or not it is shown. Prefect's client tries a call again by itself.
    """
    try:
        comparison = None
        if decision.comparison_key is not None:
            comparison = await asyncio.to_thread(
                get_comparison, database_for(current_settings()), decision.comparison_key
            )
        with prefect_errors():
            await acreate_markdown_artifact(
                key=f"decision-{decision.session_id}-{decision.attempt}".replace("_", "-"),
                markdown=markdown(decision, comparison),
                description=f"{STATE_NAMES[decision.decision]}: {_reason(decision)}",
            )
    except Exception:
        ids = {"session_id": decision.session_id, "attempt": decision.attempt}
        log.exception("no artifact of the decision", extra={"action": "decision.artifact", **ids})


def markdown(decision: Decision, comparison: Comparison | None) -> str:
    """The artifact's text, Markdown."""
    rows = [
        ("Session", f"`{decision.session_id}`, attempt {decision.attempt}"),
        ("Decision", f"**{STATE_NAMES[decision.decision]}**"),
        ("Reason", f"`{decision.reason.value}`"),
    ]
    if decision.similarity is not None and decision.thresholds is not None:
        bounds = f"match from {decision.thresholds.match:.3f}, review from {decision.thresholds.review:.3f}"
        rows.append(("Similarity", f"**{decision.similarity:.3f}** ({bounds}; cosine, -1 to 1)"))
    if decision.detail:
        rows.append(("Detail", decision.detail))
    rows.append(("Decided", f"{decision.decided_at:%Y-%m-%d %H:%M:%S} UTC"))
    text = ["# Decision", _table(("What", "Value"), rows)]
    if comparison is None:
        return "\n\n".join(text)

    result, engine = comparison.result, comparison.engine
    used = [("Frames", f"{len(result.frames)} used of {result.frames_looked_at} looked at")]
    if result.spread is not None:
        used.append(("Spread", f"{result.spread:.3f} (smallest similarity between two frames)"))
    if result.motion is not None:
        used.append(("Motion of the face", f"{result.motion:.3f}"))
    if result.anti_spoofing is not None:
        used.append(("Anti-spoofing", f"takes {result.anti_spoofing:.0%} of the frames for real"))
    elif result.similarity is not None:
        used.append(("Anti-spoofing", "off"))
    used += [
        ("Models", f"{engine.recogniser} with {engine.detector}, {engine.backend}, on {result.device}"),
        ("Weights", "<br>".join(f"{name} `{sha256[:12]}…`" for name, sha256 in engine.weights_sha256.items())),
        ("Time", ", ".join(f"{stage} {seconds:.2f} s" for stage, seconds in result.seconds.items())),
        ("Computation started", "once" if comparison.computations == 1 else f"{comparison.computations} times"),
        ("Comparison", f"`{comparison.comparison_key}`"),
    ]
    if comparison.picture_key:
        used.append(("Picture for reviewers", "in storage, at `comparisons/<comparison>/faces.jpg`"))
    text += ["## Comparison", _table(("What", "Value"), used)]
    faces = [("ID image", "", "", result.reference)] if result.reference is not None else []
    faces += [(f"{f.time_seconds:.2f} s", f"{f.similarity:.3f}", f"{f.weight:.0%}", f.quality) for f in result.frames]
    if faces:
        text += ["## Faces", _table(_FACES, [(*face[:3], *figures(face[3])) for face in faces])]
    return "\n\n".join(text)


def _table(header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [header, tuple("---" for _ in header), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
