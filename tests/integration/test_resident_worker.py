"""The resident worker against a real Prefect server: what each run costs, and what one run does to the others."""

import asyncio
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from typing import Any, TypeVar
from uuid import UUID

import httpx
import psutil
import pytest
from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.filters import LogFilter, LogFilterFlowRunId
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.settings import (
    PREFECT_API_URL,
    PREFECT_LOCAL_STORAGE_PATH,
    PREFECT_LOGGING_TO_API_ENABLED,
    PREFECT_WORKER_QUERY_SECONDS,
    temporary_settings,
)
from prefect.states import Cancelling, Scheduled

from deployments.resident import code
from deployments.resident.worker import ResidentWorker
from tests import resident_flows as flows
from tests.prefect_server import prefect_server

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
POOL = "resident"
FINAL = [StateType.COMPLETED, StateType.FAILED, StateType.CRASHED, StateType.CANCELLED]
T = TypeVar("T")


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("server")
    with prefect_server(folder / "prefect") as address:
        yield address


@pytest.fixture
def anyio_backend(_here: None) -> str:
    """Settings are of the context in which the loop is made."""
    return "asyncio"


@pytest.fixture(autouse=True)
def _here(address: str, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(code, "PACKAGES", [*code.PACKAGES, "tests"])
    flows.EVENTS.clear()
    flows.RELEASE.clear()
    results = tmp_path_factory.mktemp("results")
    with temporary_settings(
        {
            PREFECT_API_URL: address,
            PREFECT_LOCAL_STORAGE_PATH: results,
            PREFECT_WORKER_QUERY_SECONDS: 0.2,
            PREFECT_LOGGING_TO_API_ENABLED: True,
        }
    ):
        yield
    flows.RELEASE.set()


@pytest.fixture
async def api(_here: None) -> AsyncIterator[PrefectClient]:
    async with get_client() as client:
        yield client


@pytest.fixture
async def pool(api: PrefectClient) -> AsyncIterator[str]:
    await api.create_work_pool(WorkPoolCreate(name=POOL, type="resident"), overwrite=True)
    yield POOL
    await api.delete_work_pool(POOL)


async def deployed(api: PrefectClient, flow: str, version: str = "1", **more: Any) -> UUID:
    """A deployment of one of the test's flows, of its own unless a name is given."""
    flow_id = await api.create_flow(getattr(flows, flow))
    given: dict[str, Any] = {
        "name": f"{flow}-{time.monotonic_ns()}",
        "work_pool_name": POOL,
        "entrypoint": f"tests.resident_flows.{flow}",
        "enforce_parameter_schema": False,
    }
    return await api.create_deployment(flow_id, version=version, **(given | more))


async def started(api: PrefectClient, deployment: UUID, **parameters: Any) -> FlowRun:
    return await api.create_flow_run_from_deployment(deployment, parameters=parameters, state=Scheduled())


@asynccontextmanager
async def working(**more: Any) -> AsyncIterator[ResidentWorker]:
    """A worker at work, as `prefect worker start` runs it."""
    worker = ResidentWorker(work_pool_name=POOL, name=f"worker-{time.monotonic_ns()}", **more)
    task = asyncio.create_task(worker.start(printer=lambda *_, **__: None))
    try:
        yield worker
    finally:
        worker._settings = worker._settings.model_copy(update={"drain_seconds": 0})
        worker._drain_soon("the test is over")
        await task


async def until(look: Callable[[], Awaitable[T | None]], seconds: float = 30) -> T:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if (found := await look()) is not None:
            return found
        await asyncio.sleep(0.05)
    raise AssertionError(f"Not seen within {seconds} s.")


async def ended(api: PrefectClient, run: FlowRun, seconds: float = 30) -> FlowRun:
    return await state(api, run, *FINAL, seconds=seconds)


async def idle(worker: ResidentWorker) -> bool | None:
    return None if worker._runtime.running else True


async def state(api: PrefectClient, run: FlowRun, *wanted: StateType, seconds: float = 30) -> FlowRun:
    async def look() -> FlowRun | None:
        # Not by a client such as the worker's, whose calls are counted.
        answer = await asyncio.to_thread(httpx.get, f"{api.api_url}flow_runs/{run.id}")
        found = FlowRun.model_validate(answer.raise_for_status().json())
        return found if found.state is not None and found.state.type in wanted else None

    return await until(look, seconds)


async def test_a_run_costs_four_calls(pool: str, api: PrefectClient) -> None:
    deployment = await deployed(api, "nothing")
    calls: list[str] = []
    first, second = await started(api, deployment, number=1), await started(api, deployment, number=2)
    with recorded(calls):
        async with working(limit=1) as worker:
            await ended(api, first)
            await ended(api, second)
            await until(lambda: idle(worker))  # else it hands back what it does not know to have ended
    of_run = [call.replace(str(second.id), "ID") for call in calls if str(second.id) in call]
    state, read = "POST /api/flow_runs/ID/set_state", "GET /api/flow_runs/ID"
    assert of_run == [state, state, read, state], "Pending, Running, one look, Completed"
    others = Counter(call for call in calls if "/flow_runs/" not in call)
    assert others["GET /api/csrf-token"] == 2, "Once for the worker's loop, once for that of the flows."
    assert others["GET /api/admin/storage"] <= 1
    assert others["GET /api/flows/"] == 0


@contextmanager
def recorded(calls: list[str]) -> Iterator[None]:
    """Note what httpx sends meanwhile, but for the test's own looks."""
    original = httpx.AsyncClient.send

    async def send(self: httpx.AsyncClient, request: httpx.Request, **given: Any) -> httpx.Response:
        calls.append(f"{request.method} {request.url.path}")
        return await original(self, request, **given)

    httpx.AsyncClient.send = send  # type: ignore[method-assign]
    try:
        yield
    finally:
        httpx.AsyncClient.send = original  # type: ignore[method-assign]


async def test_flows_find_the_context_that_they_expect_and_logs_arrive_at_their_run(
    pool: str, api: PrefectClient
) -> None:
    deployment = await deployed(api, "who_am_i", tags=["of", "test"])
    runs = [await started(api, deployment, word=word) for word in ("one", "two", "three")]
    async with working():
        done = [await ended(api, run) for run in runs]
    assert {run.name for run in done} == {"run one", "run two", "run three"}
    contexts = {found[0]: found for what, found in flows.EVENTS if what == "context" and isinstance(found, tuple)}
    for run, word in zip(done, ("one", "two", "three"), strict=True):
        assert contexts[str(run.id)] == (str(run.id), f"run {word}", ("of", "test"), word)

    async def told(run: FlowRun) -> list[str] | None:
        logs = await api.read_logs(LogFilter(flow_run_id=LogFilterFlowRunId(any_=[run.id])))
        words = [line.message for line in logs if line.message.startswith("word ")]
        return words or None

    assert [await until(partial(told, run)) for run in done] == [["word one"], ["word two"], ["word three"]]


@pytest.mark.parametrize("name", ["wait", "wait_in_thread"])
async def test_a_cancelled_run_stops_and_its_neighbour_goes_on(pool: str, api: PrefectClient, name: str) -> None:
    deployment = await deployed(api, name)
    long, short = await started(api, deployment, seconds=60), await started(api, deployment, seconds=3)
    async with working():
        await state(api, long, StateType.RUNNING)
        await state(api, short, StateType.RUNNING)
        begin = time.monotonic()
        await api.set_flow_run_state(long.id, Cancelling())
        cancelled = await ended(api, long)
        assert time.monotonic() - begin < 3, "It did not wait for its end, nor for a poll."
        neighbour = await ended(api, short)
    assert (cancelled.state_name, neighbour.state_name) == ("Cancelled", "Completed")
    assert [found for what, found in flows.EVENTS if what == "cancelled"] == [(long.id, "CANCELLING")]
    assert [found for what, found in flows.EVENTS if what == "waited"] == [str(short.id)]


async def test_a_run_is_cancelled_though_prefects_observer_is_silent_and_a_look_hung_in_an_outage(
    pool: str, api: PrefectClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def silent(_: ResidentWorker) -> None:
        """As Prefect's own after one lost connection."""

    monkeypatch.setattr(ResidentWorker, "_setup_cancellation_observer", silent)
    run = await started(api, await deployed(api, "wait"), seconds=60)
    async with working() as worker:
        await state(api, run, StateType.RUNNING)
        ask, hung = worker.client.read_flow_runs, asyncio.Event()

        async def hang_once(**which: Any) -> list[FlowRun]:
            if not hung.is_set():
                hung.set()
                await asyncio.Event().wait()  # as the client does between its tries, here without end
            return await ask(**which)

        monkeypatch.setattr(worker.client, "read_flow_runs", hang_once)
        await asyncio.wait_for(hung.wait(), 30)
        begin = time.monotonic()
        await api.set_flow_run_state(run.id, Cancelling())
        assert (await ended(api, run)).state_name == "Cancelled"
        assert time.monotonic() - begin < 10


async def test_what_happens_to_one_run_does_not_touch_the_others(pool: str, api: PrefectClient) -> None:
    names = ["stuck", "fail", "leave", "leave_in_thread", "hasty", "hasty_in_thread", "wait"]
    parameters: dict[str, dict[str, Any]] = {"wait": {"seconds": 2}}
    runs = {name: await started(api, await deployed(api, name), **parameters.get(name, {})) for name in names}
    async with working():
        ends = {name: (await ended(api, runs[name])).state_name for name in names[1:]}
        flows.RELEASE.set()
        ends["stuck"] = (await ended(api, runs["stuck"])).state_name
    assert ends == {
        "stuck": "Completed",
        "fail": "Failed",
        "leave": "Crashed",
        "leave_in_thread": "Crashed",
        "hasty": "TimedOut",
        "hasty_in_thread": "TimedOut",
        "wait": "Completed",
    }


async def test_a_flow_with_retries_is_tried_again(pool: str, api: PrefectClient) -> None:
    run = await started(api, await deployed(api, "second_time_lucky"))
    async with working():
        done = await ended(api, run)
    assert (done.state_name, done.run_count) == ("Completed", 2)


async def test_job_variables_that_it_cannot_honour_are_refused(pool: str, api: PrefectClient) -> None:
    deployment = await deployed(api, "nothing", job_variables={"env": {"A": "b"}, "command": ""})
    run = await started(api, deployment)
    async with working():
        refused = await ended(api, run)
    assert refused.state is not None
    assert (refused.state_name, refused.run_count) == ("Crashed", 0)
    assert "Job variables that a resident worker cannot honour: env." in str(refused.state.message)


async def test_a_deployment_with_pull_steps_is_refused(pool: str, api: PrefectClient) -> None:
    step = {"prefect.deployments.steps.set_working_directory": {"directory": "/tmp"}}
    run = await started(api, await deployed(api, "nothing", pull_steps=[step]))
    async with working():
        refused = await ended(api, run)
    assert refused.state is not None
    assert "pull: []" in str(refused.state.message)


@pytest.mark.parametrize("name", ["wait", "wait_in_thread"])
async def test_runs_that_are_stopped_as_they_begin_are_handed_back_too(
    pool: str, api: PrefectClient, name: str
) -> None:
    deployment = await deployed(api, name)
    runs = [await started(api, deployment, seconds=60) for _ in range(12)]
    async with working() as worker:
        while len(worker._runtime.running) < 3:  # noqa: ASYNC110 - no event tells
            await asyncio.sleep(0.001)
    for run in runs:
        assert (await state(api, run, StateType.SCHEDULED)).state_type is StateType.SCHEDULED


async def test_a_worker_that_ends_hands_back_what_it_cannot_finish(pool: str, api: PrefectClient) -> None:
    waits, works = await deployed(api, "wait"), await deployed(api, "wait_in_thread")
    runs = [await started(api, waits, seconds=60), await started(api, works, seconds=60)]
    async with working():
        for run in runs:
            await state(api, run, StateType.RUNNING)
    for run in runs:
        back = await state(api, run, StateType.SCHEDULED)
        assert back.state is not None
        assert str(back.state.message).startswith("Handed back: its worker")
    assert {found for what, found in flows.EVENTS if what == "left"} == {str(runs[1].id)}, "Blocks are left in order."


async def test_a_worker_that_drains_finishes_what_runs_and_takes_nothing_new(pool: str, api: PrefectClient) -> None:
    deployment = await deployed(api, "wait")
    running = await started(api, deployment, seconds=2)
    async with working() as worker:
        await state(api, running, StateType.RUNNING)
        assert await asyncio.to_thread(worker.is_worker_still_polling, 1)
        worker._drain_soon("the test wants it")
        late = await started(api, deployment, seconds=0)
        assert not await asyncio.to_thread(worker.is_worker_still_polling, 1)
        assert (await ended(api, running)).state_name == "Completed"
    assert (await api.read_flow_run(late.id)).state_name == "Scheduled"


async def test_it_warms_up_before_it_takes_runs_and_loads_code_once_for_a_version(
    pool: str, api: PrefectClient
) -> None:
    deployment = await deployed(api, "nothing", name="versions")
    async with working() as worker:
        await ended(api, await started(api, deployment))
        assert [what for what, _ in flows.EVENTS] == ["warm"]
        first = worker._code.flow(await api.read_deployment(deployment))
        assert worker._code.flow(await api.read_deployment(deployment)) is first
        await deployed(api, "nothing", version="2", name="versions")
        assert worker._code.flow(await api.read_deployment(deployment)) is not first


@pytest.mark.parametrize("name", ["nothing", "nothing_in_thread"])
async def test_runs_leave_no_thread_and_no_socket(pool: str, api: PrefectClient, name: str) -> None:
    deployment = await deployed(api, name)
    process = psutil.Process()
    async with working(limit=10):
        for run in [await started(api, deployment) for _ in range(10)]:
            await ended(api, run)
        before = (threading.active_count(), process.num_fds())
        for run in [await started(api, deployment) for _ in range(40)]:
            assert (await ended(api, run, 60)).state_name == "Completed"
        await asyncio.sleep(1)
        after = (threading.active_count(), process.num_fds())
    # As many threads and connections as runs at a time may stay for the next ones.
    assert after[0] <= before[0] + 10, [thread.name for thread in threading.enumerate()]
    assert after[1] <= before[1] + 20


async def test_an_answer_that_was_on_its_way_does_not_run_a_run_again(pool: str, api: PrefectClient) -> None:
    """Prefect would allow it: a run that is Completed may become Pending."""
    run = await started(api, await deployed(api, "nothing"))
    (late,) = [answer.flow_run for answer in await api.get_scheduled_flow_runs_for_work_pool(POOL)]
    async with working() as worker:
        await ended(api, run)
        worker._submitting_flow_run_ids.add(late.id)
        await worker._submit_run(late)
        again = await api.read_flow_run(run.id)
    assert (again.state_name, again.run_count) == ("Completed", 1)
