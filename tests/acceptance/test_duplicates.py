"""What stops which duplicate: one test for each row of the table in docs/architecture.md, with real processes.

All run on SQLite with resident workers, and on PostgreSQL with Prefect's process workers. The rows that are a
matter of SQL alone are in tests/integration/test_leases.py and test_status.py, on both databases.
"""

import asyncio
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import psutil
import pytest
from prefect.client.schemas.objects import FlowRun
from prefect.settings import temporary_settings
from prefect.states import Scheduled
from sqlalchemy import select

from deployments.demo_card import draw_card
from deployments.demo_media import DemoMedia, portraits
from deployments.stack import environment
from tasks.contracts import FileKind, Status, comparison_key
from tasks.database.attempts import get_attempt, open_attempt
from tasks.database.audit import trail
from tasks.database.comparisons import get_comparison
from tasks.database.engine import reading
from tasks.database.leases import Lease, comparison_lease, holders, release, take
from tasks.database.tables import AuditRow, DecisionRow
from tasks.dispatch import worker_of
from tasks.faces.models import engine_config
from tasks.liveness import run_lease
from tasks.settings import Settings
from tasks.trigger import trigger
from tests.acceptance.test_sessions import executions
from tests.system import DECISION_SECONDS, System, eventually

SOON = 0.005


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def anywhere(request: pytest.FixtureRequest) -> System:
    """A running system with its database on SQLite or PostgreSQL, and either type of workers."""
    found: System = request.getfixturevalue("system" if request.param == "sqlite" else "stock_system")
    return found


class Pair:
    """Two files that no other test has, recorded for a session that Prefect does not know of."""

    def __init__(self, system: System, session_id: str, card: Path, video: Path) -> None:
        self.system, self.session_id = system, session_id
        open_attempt(system.database, session_id, 1, 3600)
        self.reference = system.record(session_id, FileKind.ID_IMAGE, card)
        self.probe = system.record(session_id, FileKind.SELFIE_VIDEO, video)
        self.key = comparison_key(self.reference.sha256, self.probe.sha256, engine_config(Settings()))

    def trigger(self, times: int = 1) -> None:
        """Tell Prefect, so many times at once."""
        attempt = get_attempt(self.system.database, self.session_id)

        async def tell() -> None:
            await asyncio.gather(*(trigger(attempt) for _ in range(times)))

        with temporary_settings(self.system.prefect_settings):
            asyncio.run(tell())

    def starts(self) -> int:
        """How often its computation was started."""
        return len(self.system.audit(self.key))

    def stored(self) -> bool:
        """Whether its row is there."""
        return get_comparison(self.system.database, self.key) is not None

    def until(self, seen: bool, what: str) -> None:
        """Wait closely for `computing` or `stored` to be as wanted."""
        look = self.starts if what == "computing" else self.stored
        deadline = time.monotonic() + DECISION_SECONDS
        while bool(look()) != seen:
            assert time.monotonic() < deadline, f"{what} is not {seen}"
            time.sleep(SOON)

    def waits(self, name: str) -> FlowRun | None:
        """Its one flow run, if it is in this state."""
        (run,) = self.system.session_runs(self.session_id)
        return run if run.state_name == name else None

    def decided(self) -> str:
        """Its decision, when it is there."""
        decision = eventually(lambda: get_attempt(self.system.database, self.session_id).decision)
        return decision.decision.value

    def ended(self) -> str:
        """Name of the state in which the session's one flow run ends."""

        def look() -> str | None:
            (run,) = self.system.session_runs(self.session_id)
            return run.state.name if run.state is not None and run.state.is_final() else None

        return eventually(look)


@pytest.fixture
def pair(
    anywhere: System,
    session_id: str,
    demo_media: DemoMedia,
    media_settings: Settings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Pair:
    """A genuine pair: the right decision is match."""
    for name, value in (
        ("KYCFLOW_STATE_DIR", str(anywhere.settings.state_dir)),
        ("KYCFLOW_DATABASE_URL", anywhere.settings.database_url or ""),
    ):
        monkeypatch.setenv(name, value)
    card = tmp_path / "card.jpg"
    card.write_bytes(draw_card(portraits(media_settings)[0], serial=time.time_ns() % 10**6))
    return Pair(anywhere, session_id, card, demo_media.selfie_video)


def test_fifty_triggers_at_once_give_one_flow_run_one_comparison_and_one_decision(pair: Pair) -> None:
    """Without the idempotency key there are 50 flow runs."""
    pair.trigger(50)
    assert pair.decided() == "match"
    assert pair.ended() == "Match"
    assert pair.starts() == 1
    with reading(pair.system.database) as session:
        assert len(session.scalars(select(DecisionRow).where(DecisionRow.session_id == pair.session_id)).all()) == 1


def test_a_session_started_again_after_its_decision_and_another_with_its_files_compute_nothing(
    pair: Pair, demo_media: DemoMedia, tmp_path: Path
) -> None:
    """Without the look for the stored row, each computes again."""
    pair.trigger()
    assert pair.decided() == "match"
    assert pair.ended() == "Match"
    (run,) = pair.system.session_runs(pair.session_id)
    pair.system.prefect(lambda client: client.set_flow_run_state(run.id, Scheduled(), force=True))
    twin = Pair(pair.system, f"{pair.session_id}-twin", tmp_path / "card.jpg", demo_media.selfie_video)
    assert twin.key == pair.key
    twin.trigger()
    assert twin.decided() == "match"
    eventually(lambda: True if executions(pair.system, run.id) >= 2 else None)
    assert pair.ended() == "Match"
    assert pair.starts() == 1


def test_a_worker_killed_in_the_middle_of_a_comparison_has_it_running_again_within_30_seconds(pair: Pair) -> None:
    """Without the sweep it never runs again."""
    pair.trigger()
    pair.until(True, "computing")
    pair.system.kill_worker("gpu")
    killed = time.monotonic()
    assert not pair.stored(), "It was killed too late: the row is there."
    eventually(lambda: True if pair.starts() == 2 else None)
    seconds = time.monotonic() - killed
    assert pair.decided() == "match"
    assert pair.starts() == 2
    print(f"running again after {seconds:.1f} s")
    assert seconds < 30


def test_a_comparison_whose_worker_dies_twice_is_not_tried_a_third_time(pair: Pair) -> None:
    """Its files may be what kills. Without the count of deaths, it would take worker after worker along."""
    pair.trigger()
    for start in (1, 2):
        while pair.starts() < start:
            time.sleep(SOON)
        pair.system.kill_worker("gpu")
        assert not pair.stored(), "It was killed too late: the row is there."
    eventually(lambda: True if get_attempt(pair.system.database, pair.session_id).status is Status.ERROR else None)
    assert pair.ended() == "Crashed"
    assert pair.starts() == 2
    assert len(pair.system.audit(pair.key, "computation_lost")) == 2
    (told,) = [line.detail for line in trail(pair.system.database, pair.session_id) if line.to_status == "error"]
    assert "2 times while it computed" in str(told)


def test_a_worker_killed_after_the_row_was_stored_before_anyone_knew_costs_no_second_computation(pair: Pair) -> None:
    """Without the unique comparison key it is computed again."""
    pair.trigger()
    pair.until(True, "stored")
    pair.system.kill_worker("gpu")
    assert pair.decided() == "match"
    assert pair.starts() == 1
    assert pair.ended() == "Match"


def test_a_worker_killed_while_it_starts_a_run_loses_nothing(pair: Pair) -> None:
    """Killed in Pending, and once more in Running. Without the sweep the run stays there for ever."""
    pair.trigger()
    # In a resident worker it is Pending for a few milliseconds, and soon computes: killed twice there, it is given up.
    for wanted in ("RUNNING",) if pair.system.resident else ("PENDING", "RUNNING"):
        while not _is(pair, wanted):
            time.sleep(SOON)
        pair.system.kill_worker("gpu")
    assert pair.decided() == "match"
    assert pair.ended() == "Match"
    assert pair.starts() <= 2


def _is(pair: Pair, wanted: str) -> bool:
    """Whether the session's run has a state of this type, and names its worker: before that the sweep waits longer."""
    (run,) = pair.system.session_runs(pair.session_id)
    return run.state_type is not None and run.state_type.value == wanted and worker_of(run) != ""


def test_a_paused_holder_writes_nothing_after_its_comparison_was_taken_over(pair: Pair) -> None:
    """SIGSTOP for longer than the lease, then SIGCONT. Without the token it would store its own row and picture."""
    pair.trigger()
    pair.until(True, "computing")
    paused = computing_process(pair.system)
    paused.suspend()
    try:
        assert not pair.stored(), "It was paused too late: the row is there."
        with another_worker(pair.system) if pair.system.resident else nullcontext():
            pair.until(True, "stored")
        by_other = get_comparison(pair.system.database, pair.key)
        assert pair.starts() == 2
    finally:
        paused.resume()
    if pair.system.resident:
        log = pair.system.settings.state_dir / "logs" / "worker-gpu.log"
        eventually(lambda: True if "lease lost" in log.read_text() else None)
    else:
        psutil.wait_procs([paused], timeout=DECISION_SECONDS)
        assert not paused.is_running()
    assert get_comparison(pair.system.database, pair.key) == by_other
    with reading(pair.system.database) as session:
        stores = (AuditRow.comparison_key == pair.key) & (AuditRow.event == "comparison_stored")
        assert len(session.scalars(select(AuditRow).where(stores)).all()) == 1
    assert pair.decided() == "match"


def computing_process(system: System) -> psutil.Process:
    """The process that computes the only comparison."""
    worker = system.worker("gpu")
    if system.resident:
        return worker
    (found,) = [one for one in worker.children(recursive=True) if "prefect.engine" in " ".join(one.cmdline())]
    return found


@contextmanager
def another_worker(system: System) -> Iterator[None]:
    """A second worker for comparisons, as on another machine."""
    process = subprocess.Popen(
        [sys.executable, "-m", "deployments.worker", "--pool", "gpu"],
        env={**system.environment, **environment(system.settings, system.addresses)},
    )
    try:
        yield
    finally:
        process.terminate()
        assert process.wait(60) == 0


def test_two_sessions_that_want_the_same_comparison_at_once_compute_it_once(
    pair: Pair, demo_media: DemoMedia, tmp_path: Path
) -> None:
    """Without the lease both compute."""
    twin = Pair(pair.system, f"{pair.session_id}-twin", tmp_path / "card.jpg", demo_media.selfie_video)
    pair.trigger()
    twin.trigger()
    assert [one.decided() for one in (pair, twin)] == ["match"] * 2
    assert [one.ended() for one in (pair, twin)] == ["Match"] * 2
    assert pair.starts() == 1


def test_a_session_whose_comparison_another_one_computes_gives_up_its_place_and_is_woken(pair: Pair) -> None:
    """Somebody holds the lease for as long as it takes. Without the wake it would wait for ever."""
    database, name = pair.system.database, comparison_lease(pair.key)
    lease = take(database, name, "another flow run", DECISION_SECONDS)
    assert isinstance(lease, Lease)
    pair.trigger()
    run = eventually(lambda: pair.waits("AwaitingComparison"), 60)
    assert "same two files" in str(run.state.message if run.state else "")
    release(database, lease)
    assert pair.decided() == "match"
    assert pair.ended() == "Match"
    assert pair.starts() == 1
    assert executions(pair.system, run.id) == 2, "It waited once, and was woken once."


def test_a_run_that_ended_gives_no_sign_of_life_any_more(pair: Pair) -> None:
    """Else the sweep would take a run that is started again later for lost."""
    pair.trigger()
    assert pair.ended() == "Match"
    (run,) = pair.system.session_runs(pair.session_id)
    eventually(lambda: True if not holders(pair.system.database, [run_lease(run.id)]) else None, 30)
