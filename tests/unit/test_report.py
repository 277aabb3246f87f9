"""What a run shows in the Prefect UI when it has ended."""

import asyncio
from datetime import UTC, datetime
from uuid import uuid4

import pytest
from prefect.client.schemas.objects import FlowRun
from prefect.states import Failed

from tasks.contracts import (
    Comparison,
    Decision,
    DecisionKind,
    EngineConfig,
    Reason,
    Thresholds,
)
from tasks.dispatch import seen
from tasks.errors import DatabaseUnavailable
from tasks.report import final_state, markdown, publish_decision, unavailable
from tests.faces import frame, quality, scored

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
DECISION = Decision(
    session_id="abc_1",
    attempt=2,
    decision=DecisionKind.REVIEW,
    reason=Reason.SIMILARITY_IN_REVIEW_BAND,
    similarity=0.4,
    thresholds=Thresholds(match=0.416, review=0.358),
    comparison_key="c" * 64,
    decided_at=NOON,
)
COMPARISON = Comparison(
    comparison_key="c" * 64,
    result=scored(
        similarity=0.4,
        frames=(frame(time_seconds=1.5, similarity=0.39, quality=quality(yaw=-0.4)),),
        seconds={"decode": 0.1, "total": 0.6},
    ),
    engine=EngineConfig(weights_sha256={"face.onnx": "d" * 64}),
    picture_key="comparisons/c/faces.jpg",
    computations=1,
    started_at=NOON,
    finished_at=NOON,
)


@pytest.mark.parametrize("kind", DecisionKind)
def test_every_decision_is_a_completed_run_with_a_name_of_its_own(kind: DecisionKind) -> None:
    state = final_state(DECISION.model_copy(update={"decision": kind}))
    assert state.is_completed()
    assert state.name == kind.value.title().replace("_", "")


def test_the_artifact_says_what_was_decided_why_and_from_what() -> None:
    text = markdown(DECISION, COMPARISON)
    for piece in (
        "`abc_1`, attempt 2",
        "**Review**",
        "SIMILARITY_IN_REVIEW_BAND",
        "**0.400**",
        "match from 0.416, review from 0.358",
        "1 used of 10 looked at",
        "SFace with yunet",
        "face.onnx `dddddddddddd…`",
        "total 0.60 s",
        "| Computation started | once |",
        "| ID image |  |  | 80 px | 0.300 | 0.50 | 0.15 | 2° | -3° | 0.93 |",
        "| 1.50 s | 0.390 | 100% | 80 px | 0.300 | 0.50 | 0.15 | 0° | -3° | 0.93 |",
        "| Spread | 0.800 (smallest similarity between two frames) |",
        "| Motion of the face | 0.100 |",
        "| Anti-spoofing | off |",
    ):
        assert piece in text, piece


def test_a_rejection_shows_the_figure_that_it_rests_on() -> None:
    rejected = DECISION.model_copy(
        update={"decision": DecisionKind.REJECTED, "reason": Reason.FACE_TOO_SMALL, "detail": "12, and 16 is needed."}
    )
    assert "| Detail | 12, and 16 is needed. |" in markdown(rejected, COMPARISON)


def test_an_expired_session_has_no_comparison_to_show() -> None:
    expired = Decision(
        session_id="a", attempt=1, decision=DecisionKind.EXPIRED, reason=Reason.ID_IMAGE_MISSING, decided_at=NOON
    )
    text = markdown(expired, None)
    assert "ID_IMAGE_MISSING" in text
    assert "Comparison" not in text


def test_a_decision_stands_even_if_a_bug_keeps_it_from_being_shown(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def bug(**_: object) -> None:
        raise ValueError("a bug")

    monkeypatch.setattr("tasks.report.acreate_markdown_artifact", bug)
    asyncio.run(publish_decision(DECISION.model_copy(update={"comparison_key": None})))
    assert "ValueError: a bug" in caplog.text


def test_a_run_that_ended_by_a_fault_that_may_pass_is_known_as_such_by_the_sweep() -> None:
    ended = FlowRun(flow_id=uuid4(), state=unavailable(DatabaseUnavailable("It is away.")))
    assert seen(ended).failed_for_now
    assert ended.state is not None
    assert ended.state.message == "DatabaseUnavailable: It is away."
    assert not seen(FlowRun(flow_id=uuid4(), state=Failed(message="a bug"))).failed_for_now
