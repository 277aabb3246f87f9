"""`kycflow demo`: six sessions through the upload API, their decisions beside those expected."""

import json
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from rich.console import Console
from rich.table import Table

from deployments.client import UploadClient
from deployments.demo_media import DEMO, DemoMedia, demo_media
from deployments.stack import running, stack_or_running
from tasks.database import database_for
from tasks.database.attempts import get_attempt
from tasks.database.comparisons import get_comparison
from tasks.errors import Refused
from tasks.settings import Settings
from tasks.storage import open_storage

DECISION_SECONDS = 300
# Long enough for a slow machine to notice the deadline by itself, short enough to watch.
SHORT_DEADLINE_SECONDS = 15


@dataclass(frozen=True)
class Outcome:
    """One session of the demo. `expected` and `actual` are a decision, or `refused` where the API takes no file."""

    name: str
    expected: str
    session_id: str
    actual: str = ""
    reason: str = ""
    similarity: float | None = None
    seconds: float = 0.0
    first_decision_at: float = 0.0
    picture: str = ""

    @property
    def right(self) -> bool:
        """Whether it ended as expected."""
        return self.expected == self.actual


@dataclass(frozen=True)
class Case:
    """What one session sends, and what should come of it."""

    name: str
    expected: str
    card: Path
    video: Path | None
    deadline_seconds: int | None = None


def cases(media: DemoMedia) -> list[Case]:
    """The demo's sessions."""
    return [
        Case("genuine", "match", media.genuine_card, media.selfie_video),
        Case("video-first", "match", media.genuine_card, media.selfie_video),
        Case("impostor", "no_match", media.impostor_card, media.selfie_video),
        Case("faceless", "rejected", media.faceless_card, media.selfie_video),
        Case("not-a-video", "refused", media.genuine_card, media.not_a_video, SHORT_DEADLINE_SECONDS),
        Case("no-video", "expired", media.genuine_card, None, SHORT_DEADLINE_SECONDS),
    ]


def run_demo(settings: Settings, out: Console, err: Console, *, as_json: bool = False) -> int:
    """Start the system (or use the one that runs), send the sessions, show what came of them.

    Returns:
        0 when every session ended as expected, else 1.
    """
    began = time.monotonic()
    with err.status("Drawing ID cards, cutting the video") as status:
        media = demo_media(settings.state_dir / DEMO, settings)
        status.update("Starting Prefect, workers and the upload service")
        already = running(settings)
        with stack_or_running(settings) as addresses:
            err.print(f"Prefect UI {addresses.prefect_ui}, upload API {addresses.upload_api}", highlight=False)
            suffix = uuid.uuid4().hex[:6]
            todo = cases(media)
            status.update(f"Verifying {len(todo)} sessions")
            pool = ThreadPoolExecutor(len(todo))
            try:
                outcomes = list(
                    pool.map(lambda case: _verify(case, addresses.upload_api, settings, suffix, began), todo)
                )
            finally:
                # On Ctrl-C nobody waits for decisions: the sessions' threads end when the upload API is gone.
                pool.shutdown(wait=False, cancel_futures=True)
            status.update("Stopping")
    if as_json:
        print(json.dumps([asdict(outcome) | {"right": outcome.right} for outcome in outcomes], indent=2))  # noqa: T201
    else:
        _show(outcomes, out)
        if already is None:
            out.print("`make up` starts the system again, to look at these runs in the Prefect UI.", highlight=False)
    return 0 if all(outcome.right for outcome in outcomes) else 1


def _verify(case: Case, api_url: str, settings: Settings, suffix: str, began: float) -> Outcome:
    outcome = Outcome(case.name, case.expected, f"demo-{case.name}-{suffix}")
    start = time.monotonic()
    with UploadClient(api_url, settings) as client:
        client.create_session(outcome.session_id, case.deadline_seconds)
        uploads: list[Callable[[], object]] = [lambda: client.upload(outcome.session_id, "id_image", case.card)]
        if case.video is not None:
            video = case.video
            uploads.append(lambda: client.upload(outcome.session_id, "selfie_video", video))
        if case.name == "video-first":
            uploads.reverse()
        try:
            for upload in uploads:
                upload()
        except Refused as refused:
            return replace(outcome, actual="refused", reason=refused.code, seconds=time.monotonic() - start)
        session = client.wait(outcome.session_id, DECISION_SECONDS)
    return replace(
        outcome,
        actual=session["decision"] or session["status"],
        reason=session["reason"] or "",
        similarity=session["similarity"],
        seconds=time.monotonic() - start,
        first_decision_at=time.monotonic() - began,
        picture=_picture(outcome.session_id, settings),
    )


def _picture(session_id: str, settings: Settings) -> str:
    """Where a reviewer finds the picture of the comparison."""
    database = database_for(settings)
    decision = get_attempt(database, session_id).decision
    if decision is None or decision.comparison_key is None:
        return ""
    comparison = get_comparison(database, decision.comparison_key)
    return open_storage(settings).url(comparison.picture_key) if comparison and comparison.picture_key else ""


def _show(outcomes: list[Outcome], out: Console) -> None:
    # Fits a terminal of 80 columns.
    headers = ("Session", "Expected", "Decision", "Reason", "Score", "Time", "")
    table = Table(*headers, box=None, pad_edge=False, padding=(0, 2, 0, 0), collapse_padding=True)
    for outcome in outcomes:
        table.add_row(
            outcome.name,
            outcome.expected,
            outcome.actual,
            outcome.reason,
            "" if outcome.similarity is None else f"{outcome.similarity:.3f}",
            f"{outcome.seconds:.1f} s",
            "[green]right[/]" if outcome.right else "[red]WRONG[/]",
        )
    out.print(table)
    decided = [outcome.first_decision_at for outcome in outcomes if outcome.first_decision_at]
    if decided:
        out.print(f"First decision {min(decided):.1f} s after the start.")
    for outcome in outcomes:
        if outcome.picture:
            out.print(f"{outcome.name:12} picture for reviewers: {outcome.picture}", soft_wrap=True, highlight=False)
