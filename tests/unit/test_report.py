"""What a run shows in the Prefect UI when it has ended."""

import asyncio
from datetime import UTC, datetime
from uuid import uuid4

import pytest
from prefect.client.schemas.objects import FlowRun
from prefect.states import Failed

from tasks.contracts import (
    Attempt,
    Comparison,
    Decision,
    DecisionKind,
    EngineConfig,
    Reason,
    Thresholds,
)
from tasks.dispatch import seen
from tasks.errors import DatabaseUnavailable, OutOfMemory
from tasks.report import markdown, publish_decision
from tasks.states import awaiting_files, decided, decision_tags, unavailable
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
    started_by="flow run 1",
    started_at=NOON,
    finished_at=NOON,
)


@pytest.mark.parametrize("kind", DecisionKind)
def test_every_decision_is_a_completed_run_with_a_name_of_its_own(kind: DecisionKind) -> None:
    state = decided(DECISION.model_copy(update={"decision": kind}))
    assert state.is_completed()
    assert state.name == kind.value.title().replace("_", "")


def test_the_artifact_says_what_was_decided_why_and_from_what() -> None:
    text = markdown(DECISION, COMPARISON)
    for piece in (
        "`abc_1`, attempt 2",
        "**Review**",
        "SIMILARITY_IN_REVIEW_BAND",
        "1 used of 10 looked at",
        "SFace with yunet",
        "face.onnx `dddddddddddd…`",
        "| Time | 0.60 s: decode 0.10 |",
        "| Computation started | once |",
        "| Next step | A person looks at the picture for reviewers |",
        "\n\nPicture for reviewers, in storage:\n\n```\ncomparisons/c/faces.jpg\n```",
        "| Scores | `kycflow status abc_1`<br>`GET /sessions/abc_1` |",
    ):
        assert piece in text, piece


@pytest.mark.parametrize("kind", DecisionKind)
def test_no_score_goes_to_prefect(kind: DecisionKind) -> None:
    decision = DECISION.model_copy(update={"decision": kind, "detail": "0.123, and 0.2 is needed."})
    told = markdown(decision, COMPARISON) + str(decided(decision).message)
    scores = ("0.4", "0.39", "0.416", "0.358", "0.123", "0.800", "0.100")  # of the decision and of the comparison
    assert [score for score in scores if score in told] == []
    assert decision.reason.value in str(decided(decision).message)


def test_a_run_has_the_tag_of_its_decision_and_of_no_other() -> None:
    before = ["session", "decision:expired", "kycflow"]
    assert decision_tags(before, DecisionKind.NO_MATCH) == ["kycflow", "session", "decision:no_match"]


def test_a_session_that_nobody_told_of_waits_with_words_for_that() -> None:
    unknown = Attempt(session_id="abc_1", attempt=2, created_at=NOON, deadline_at=NOON)
    assert "This session was not known" in str(awaiting_files(unknown).message)
    assert "sessions/abc_1/2/" in str(awaiting_files(unknown).message)
    known = awaiting_files(unknown.model_copy(update={"announced": True}))
    assert str(known.message).startswith("Waiting for the ID image and the selfie video until")


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
    def bug(*_: object) -> str:
        raise ValueError("a bug")

    monkeypatch.setattr("tasks.report.markdown", bug)
    asyncio.run(publish_decision(DECISION.model_copy(update={"comparison_key": None})))
    assert "ValueError: a bug" in caplog.text


def test_a_run_that_ended_by_a_fault_that_may_pass_is_known_as_such_by_the_sweep() -> None:
    ended = FlowRun(flow_id=uuid4(), state=unavailable(DatabaseUnavailable("It is away.")))
    assert seen(ended).unavailable
    assert ended.state is not None
    assert ended.state.message == "DatabaseUnavailable: It is away."
    assert not seen(FlowRun(flow_id=uuid4(), state=Failed(message="a bug"))).unavailable
    # Counted, as it may be this run's files that the device has not enough memory for.
    assert unavailable(OutOfMemory("The device is full.")).is_crashed()
