"""What the sweep finds and mends, on a running system whose own sweep looks too: uploads are too fresh for that one."""

import asyncio
import gc
import secrets
import time
from collections.abc import Awaitable, Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import httpx
import pytest
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey
from prefect.client.schemas.objects import FlowRunPolicy, State
from prefect.settings import temporary_settings
from prefect.states import Cancelled, Cancelling, Crashed, Failed, Pending, Running, Scheduled
from sqlalchemy import select, update

import tasks.sweep
import tasks.sweep.findings
from deployments.demo_media import DemoMedia
from tasks.contracts import Attempt, FileKind, Status
from tasks.database.attempts import get_attempt, note_comparison, note_run, open_attempt
from tasks.database.engine import reading, writing
from tasks.database.leases import holders
from tasks.database.tables import AttemptRow, LeaseRow
from tasks.dispatch import PAGE, on_worker
from tasks.errors import OrchestratorUnavailable
from tasks.leasing import sign_of_life
from tasks.liveness import run_lease, worker_lease
from tasks.recovery import Action
from tasks.settings import Settings
from tasks.states import UNAVAILABLE, awaiting_comparison
from tasks.sweep.findings import UNNAMED_WORKER_SECONDS, Finding, Looker
from tasks.sweep.mend import mend
from tasks.trigger import resume
from tests.acceptance.test_sessions import verify
from tests.system import System, eventually

pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture(autouse=True)
def _inside(system: System, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """This process as one of the system's own, whose sweep takes every upload for settled."""
    monkeypatch.setenv("KYCFLOW_STATE_DIR", str(system.settings.state_dir))
    monkeypatch.setattr(tasks.sweep.findings, "SETTLED_SECONDS", 0)
    with temporary_settings(system.prefect_settings):
        yield
        gc.collect()


def with_files(system: System, session_id: str, media: DemoMedia) -> Attempt:
    """A session with both files that nobody told Prefect of."""
    open_attempt(system.database, session_id, 1, 3600)
    system.record(session_id, FileKind.ID_IMAGE, media.genuine_card)
    system.record(session_id, FileKind.SELFIE_VIDEO, media.selfie_video)
    return get_attempt(system.database, session_id)


def with_run(system: System, session_id: str, state: State[Any], key: str = "") -> UUID:
    """A flow run of that session in that state, which no worker has ever had. With a key, it stands beside others."""

    async def make(client: PrefectClient) -> UUID:
        deployment = await client.read_deployment_by_name("verify-session/verify-session")
        later: State[Any] = Scheduled(scheduled_time=datetime.now(UTC) + timedelta(hours=1))
        run = await client.create_flow_run_from_deployment(
            deployment.id, parameters={"session_id": session_id}, idempotency_key=f"{session_id}:1{key}", state=later
        )
        await client.set_flow_run_state(run.id, state, force=True)
        return run.id

    run_id = system.prefect(make)
    note_run(system.database, session_id, 1, run_id, by="test")
    return run_id


def about(session_id: str) -> list[Finding]:
    """What one look finds about a session."""
    return [
        one for one in asyncio.run(Looker().look()) if one.attempt is not None and one.attempt.session_id == session_id
    ]


def mended(session_id: str) -> list[Action]:
    """What one look finds about a session, and does."""

    async def do(findings: list[Finding]) -> None:
        for finding in findings:
            await mend(finding)

    findings = about(session_id)
    asyncio.run(do(findings))
    return [finding.action for finding in findings]


def decided(system: System, session_id: str) -> str:
    decision = eventually(lambda: get_attempt(system.database, session_id).decision)
    return decision.decision.value


def test_a_session_that_nobody_told_prefect_of_is_started(
    system: System, demo_media: DemoMedia, session_id: str
) -> None:
    with_files(system, session_id, demo_media)
    assert mended(session_id) == [Action.START]
    assert decided(system, session_id) == "match"


def test_a_look_alone_changes_nothing(system: System, demo_media: DemoMedia, session_id: str) -> None:
    with_files(system, session_id, demo_media)
    assert [one.action for one in about(session_id)] == [Action.START]
    assert [one.action for one in about(session_id)] == [Action.START]
    assert system.session_runs(session_id) == []


@pytest.mark.parametrize(("state", "counted"), [(Crashed, 1), (lambda: Crashed(name=UNAVAILABLE), 0)])
def test_a_run_that_ended_by_a_fault_that_may_pass_is_executed_again(
    state: Callable[[], State[Any]], counted: int, system: System, demo_media: DemoMedia, session_id: str
) -> None:
    with_files(system, session_id, demo_media)
    run_id = with_run(system, session_id, state())
    assert mended(session_id) == [Action.RECOVER]
    assert decided(system, session_id) == "match"
    assert get_attempt(system.database, session_id).recoveries == counted
    assert system.ended_run(run_id).state_name == "Match"


@pytest.mark.parametrize("by", ["sweep", "person"])
def test_a_run_that_prefect_retried_in_a_process_which_is_gone_is_executed_again(
    by: str, system: System, demo_media: DemoMedia, session_id: str
) -> None:
    """No worker is offered one of these."""
    with_files(system, session_id, demo_media)
    run_id = with_run(system, session_id, Crashed())
    retried = FlowRunPolicy(retries=0, retry_type="in_process")
    system.prefect(lambda client: client.update_flow_run(run_id, empirical_policy=retried))
    if by == "sweep":
        assert mended(session_id) == [Action.RECOVER]
    else:
        asyncio.run(resume(get_attempt(system.database, session_id)))
    assert decided(system, session_id) == "match"


def test_two_sweeps_at_once_start_a_run_again_once(system: System, demo_media: DemoMedia, session_id: str) -> None:
    with_files(system, session_id, demo_media)
    with_run(system, session_id, Crashed())
    findings = about(session_id) * 2

    async def both() -> None:
        await asyncio.gather(*(mend(finding) for finding in findings))

    asyncio.run(both())
    assert get_attempt(system.database, session_id).recoveries == 1
    assert decided(system, session_id) == "match"


def test_a_run_that_failed_for_good_gives_the_session_up_loudly_and_an_upload_takes_it_up_again(
    system: System, demo_media: DemoMedia, session_id: str
) -> None:
    with_files(system, session_id, demo_media)
    with_run(system, session_id, Failed(message="a bug"))
    assert mended(session_id) == [Action.GIVE_UP]
    assert get_attempt(system.database, session_id).status is Status.ERROR
    key = ArtifactFilter(key=ArtifactFilterKey(any_=[f"error-{session_id}-1"]))
    (artifact,) = system.prefect(lambda client: client.read_artifacts(artifact_filter=key))
    assert "Failed" in str(artifact.data)
    with system.client() as client:
        assert client.session(session_id)["status"] == "error"
        client.upload(session_id, "id_image", demo_media.genuine_card)
    assert decided(system, session_id) == "match"


def test_a_run_that_was_started_again_too_often_is_given_up(
    system: System, demo_media: DemoMedia, session_id: str
) -> None:
    with_files(system, session_id, demo_media)
    with_run(system, session_id, Crashed())
    tried = update(AttemptRow).where(AttemptRow.session_id == session_id).values(recoveries=Settings().most_recoveries)
    with writing(system.database) as session:
        session.execute(tried)
    assert mended(session_id) == [Action.GIVE_UP]
    assert get_attempt(system.database, session_id).status is Status.ERROR


def test_a_session_beyond_its_deadline_without_a_run_expires(system: System, session_id: str) -> None:
    open_attempt(system.database, session_id, 1, -1)
    mended(session_id)  # the system's own sweep may be faster
    assert decided(system, session_id) == "expired"


def test_a_run_that_waits_for_a_stored_comparison_is_woken(
    system: System, demo_media: DemoMedia, session_id: str
) -> None:
    """The run that stored it was killed before it could wake others, say."""
    verify(system, f"{session_id}-first", demo_media.genuine_card, demo_media.selfie_video)
    first = get_attempt(system.database, f"{session_id}-first").decision
    assert first is not None
    assert first.comparison_key is not None
    with_files(system, session_id, demo_media)
    note_comparison(system.database, session_id, 1, first.comparison_key, by="test")
    with_run(system, session_id, awaiting_comparison())
    assert mended(session_id) == [Action.WAKE]
    assert decided(system, session_id) == "match"


def test_a_run_that_a_person_cancelled_while_it_waited_cancels_the_session(
    system: System, demo_media: DemoMedia, session_id: str
) -> None:
    with_files(system, session_id, demo_media)
    run_id = with_run(system, session_id, awaiting_comparison())
    ui: Callable[[PrefectClient], Awaitable[object]] = lambda client: client.set_flow_run_state(  # noqa: E731
        run_id, State(type="CANCELLED", name="Cancelled"), force=True
    )
    system.prefect(ui)
    assert mended(session_id) == [Action.CANCEL]
    assert get_attempt(system.database, session_id).status is Status.CANCELLED


@pytest.mark.parametrize("state", [Crashed(), Failed(), Cancelled()], ids=lambda one: str(one.name))
def test_what_prefect_says_of_a_decided_session_is_mended_to_what_sql_says(
    state: State[Any], system: System, demo_media: DemoMedia, session_id: str
) -> None:
    verify(system, session_id, demo_media.genuine_card, demo_media.selfie_video)
    (run,) = system.session_runs(session_id)
    system.ended_run(run.id)
    wrong: Callable[[PrefectClient], Awaitable[object]] = lambda client: client.set_flow_run_state(  # noqa: E731
        run.id, state, force=True
    )
    system.prefect(wrong)
    eventually(lambda: system.session_runs(session_id)[0].state_name == "Match" or None, 30)


def test_a_run_that_waits_though_another_one_has_decided_shows_the_decision(
    system: System, demo_media: DemoMedia, session_id: str
) -> None:
    verify(system, session_id, demo_media.genuine_card, demo_media.selfie_video)
    waits = with_run(system, session_id, awaiting_comparison(), key=" again")
    assert system.ended_run(waits).state_name == "Match"


def test_a_run_that_a_living_worker_has_not_is_lost(system: System, demo_media: DemoMedia, session_id: str) -> None:
    """Its process ended, and its last state did not reach Prefect."""
    with_files(system, session_id, demo_media)
    with reading(system.database) as session:
        latest = select(LeaseRow.owner).where(LeaseRow.name.startswith(worker_lease("gpu-")))
        name = session.scalars(latest.order_by(LeaseRow.expires_at.desc())).first()
    assert name is not None
    run_id = with_run(system, session_id, Running(message=on_worker(name)))
    assert about(session_id) == []  # it may just have begun
    eventually(lambda: [one.action for one in about(session_id)] == [Action.RECOVER] or None, 20)
    assert decided(system, session_id) == "match"
    assert system.ended_run(run_id).state_name == "Match"


def test_a_session_is_cancelled_within_ten_seconds_though_its_process_does_not_learn_of_it(
    system: System, demo_media: DemoMedia, session_id: str
) -> None:
    """One of Prefect's process workers that has lost its connection, say."""
    with_files(system, session_id, demo_media)
    run_id = with_run(system, session_id, Running())
    run = system.prefect(lambda client: client.read_flow_run(run_id))
    with sign_of_life(run_lease(run_id), str(run.state_id), forget=True):
        cancelling: Callable[[PrefectClient], Awaitable[object]] = lambda client: client.set_flow_run_state(  # noqa: E731
            run_id, Cancelling()
        )
        system.prefect(cancelling)
        eventually(lambda: get_attempt(system.database, session_id).status is Status.CANCELLED or None, 10)
        assert system.prefect(lambda client: client.read_flow_run(run_id)).state_name == "Cancelling"
    assert system.ended_run(run_id).state_name == "Cancelled"


def test_a_run_that_is_being_cancelled_has_not_ended_as_long_as_a_worker_has_it(
    system: System, session_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Taken up again meanwhile, it would be cancelled once more."""
    monkeypatch.setattr(tasks.sweep.findings, "ENDING_SECONDS", 0)
    open_attempt(system.database, session_id, 1, 3600)
    run_id = with_run(system, session_id, Running())
    with sign_of_life("worker:a-test", "a-test", forget=True, runs=lambda: [str(run_id)]):
        eventually(lambda: holders(system.database, ["worker:a-test"]) or None, 10)
        system.prefect(lambda client: client.set_flow_run_state(run_id, Cancelling()))
        eventually(lambda: get_attempt(system.database, session_id).status is Status.CANCELLED or None, 10)
        assert about(session_id) == []
    assert [one.action for one in about(session_id)] == [Action.CRASH]


def test_a_mend_that_fails_keeps_no_other_from_being_done_and_is_tried_again(
    system: System, demo_media: DemoMedia, monkeypatch: pytest.MonkeyPatch
) -> None:
    ill, well = (f"test-{secrets.token_hex(6)}" for _ in range(2))
    for session_id in (ill, well):
        with_files(system, session_id, demo_media)
    mends: list[str] = []

    async def once_ill(finding: Finding) -> None:
        name = finding.attempt.session_id if finding.attempt else ""
        mends.append(name)
        if name == ill and mends.count(ill) == 1:
            raise OrchestratorUnavailable("It answered 500.")
        await mend(finding)

    async def look_twice() -> None:
        looking = tasks.sweep.Sweep(0, dry_run=False)
        await looking._look()
        await looking._look()

    monkeypatch.setattr(tasks.sweep, "mend", once_ill)
    asyncio.run(look_twice())
    assert mends.count(ill) == 2
    assert mends.count(well) == 1
    assert {decided(system, one) for one in (ill, well)} == {"match"}


def test_a_run_whose_worker_was_killed_before_it_gave_its_name_is_lost_after_half_a_minute(
    system: System, demo_media: DemoMedia, session_id: str
) -> None:
    """Workers of Prefect's own types give it one call after the run is Pending."""
    with_files(system, session_id, demo_media)
    with_run(system, session_id, Pending())
    began = time.monotonic()
    assert decided(system, session_id) == "match"
    assert UNNAMED_WORKER_SECONDS < time.monotonic() - began < 60


def test_a_look_costs_the_same_however_many_sessions_wait(
    system: System, session_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    send = httpx.AsyncClient.send

    async def counted(self: httpx.AsyncClient, request: httpx.Request, **options: Any) -> httpx.Response:
        calls.append(request.url.path)
        return await send(self, request, **options)

    def look() -> int:
        calls.clear()
        asyncio.run(Looker().look())
        return len(calls)

    monkeypatch.setattr(httpx.AsyncClient, "send", counted)
    before = look()
    for number in range(PAGE + 50):
        name = f"{session_id}-{number}"
        open_attempt(system.database, name, 1, 3600, by="another system")
        note_run(system.database, name, 1, UUID(int=number + 1), by="test")
    assert look() <= before + 1, "One call tells of 200 runs that are at work, and of those that wait none."
