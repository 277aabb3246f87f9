"""Who owns a lease while something runs: waiting, takeover, renewal, and a holder that was stopped meanwhile."""

import ctypes
import logging
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

import psutil
import pytest
from sqlalchemy import Engine, update
from sqlalchemy.exc import OperationalError

from tasks import leasing
from tasks.contracts import FaceComparison
from tasks.database.comparisons import get_comparison
from tasks.database.leases import Held, Lease, claim, holders, renew, take
from tasks.database.tables import LeaseRow
from tasks.errors import DatabaseUnavailable, LeaseHeld
from tasks.leasing import owned, sign_of_life, worker_name
from tasks.settings import Settings
from tests.attempts import trail
from tests.lease_holder import ITS_RESULT, KEY, LEASE_SECONDS, NAME, begin, finish

OVER = -1.0
"""Seconds of a lease that has expired at once."""
RESULT = FaceComparison(similarity=0.9)


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    """A thread for somebody else."""
    with ThreadPoolExecutor(1) as made:
        yield made


def lasting(seconds: float) -> Settings:
    return Settings(lease_seconds=seconds)


def left(database: Engine, seconds: float) -> Lease:
    """A lease of somebody who does not renew it."""
    found = take(database, NAME, "gone", seconds)
    assert isinstance(found, Lease)
    return found


def wanted(pool: ThreadPoolExecutor, database: Engine, seconds: float, deadline: float) -> "Future[Lease | None]":
    """What somebody else gets who wants the lease from now to the deadline."""

    def want() -> Lease | None:
        with owned(database, NAME, "another", lasting(seconds), deadline) as lease:
            return lease

    return pool.submit(want)


def renewed(database: Engine, name: str) -> Held:
    """The lease as soon as it has not expired: on a machine with much else to do a renewal may be late."""
    end = time.monotonic() + 10
    while (found := holders(database, [name]).get(name)) is None or found.expired:
        assert time.monotonic() < end, f"{name} is not renewed: {found}"
        time.sleep(0.05)
    return found


class TestWaiting:
    def test_a_free_lease_is_owned_inside_and_free_afterwards(self, database: Engine) -> None:
        with owned(database, NAME, "a", lasting(5), 0) as lease:
            assert lease is not None
            assert holders(database, [NAME]) == {NAME: Held("a", lease.token, expired=False)}
        assert holders(database, [NAME]) == {}

    def test_a_lease_is_free_after_a_failure(self, database: Engine) -> None:
        with pytest.raises(ZeroDivisionError), owned(database, NAME, "a", lasting(5), 0):
            _ = 1 / 0
        assert holders(database, [NAME]) == {}

    def test_who_waited_gets_nothing_when_the_first_gives_it_back(
        self, database: Engine, pool: ThreadPoolExecutor
    ) -> None:
        with owned(database, NAME, "first", lasting(5), 0):
            second = wanted(pool, database, 5, 20)
            time.sleep(1)
            assert not second.done()
        assert second.result(10) is None
        assert holders(database, [NAME]) == {}

    def test_a_lease_that_is_kept_for_too_long_is_an_error_that_names_its_owner(
        self, database: Engine, pool: ThreadPoolExecutor
    ) -> None:
        with owned(database, NAME, "first", lasting(5), 0):
            began = time.monotonic()
            with pytest.raises(LeaseHeld, match="held by first for more than 1 s"):
                wanted(pool, database, 5, 1).result(20)
            assert time.monotonic() - began >= 1


class TestTakeover:
    def test_an_expired_lease_is_watched_for_half_its_time_first(self, database: Engine) -> None:
        gone = left(database, OVER)
        began = time.monotonic()
        with owned(database, NAME, "b", lasting(2), 20) as lease:
            assert time.monotonic() - began >= 1
            assert lease == Lease(NAME, gone.token + 1)
        assert [line.event for line in trail(database)] == ["lease_taken_over"]

    def test_an_owner_that_renews_late_keeps_its_lease(self, database: Engine, pool: ThreadPoolExecutor) -> None:
        late = left(database, OVER)
        other = wanted(pool, database, 3, 2.5)
        time.sleep(0.7)
        assert renew(database, late, 60)
        with pytest.raises(LeaseHeld, match="gone"):
            other.result(20)
        assert holders(database, [NAME]) == {NAME: Held("gone", late.token, expired=False)}

    def test_an_owner_that_renews_and_is_gone_is_watched_anew(self, database: Engine, pool: ThreadPoolExecutor) -> None:
        late = left(database, OVER)
        began = time.monotonic()
        other = wanted(pool, database, 3, 20)
        time.sleep(0.7)
        assert renew(database, late, 0.5)
        assert other.result(20) == Lease(NAME, late.token + 1)
        assert time.monotonic() - began >= 0.7 + 0.5 + 1.5

    def test_the_next_owner_is_watched_anew(self, database: Engine, pool: ThreadPoolExecutor) -> None:
        token = left(database, OVER).token
        began = time.monotonic()
        other = wanted(pool, database, 3, 20)
        time.sleep(0.7)
        assert take(database, NAME, "next", OVER, over=token) == Lease(NAME, token + 1)
        assert other.result(20) == Lease(NAME, token + 2)
        assert time.monotonic() - began >= 0.7 + 1.5


def pure_python(seconds: float) -> None:
    """Computes; other threads run when Python makes it let them."""
    end = time.monotonic() + seconds
    number = 1
    while time.monotonic() < end:
        number = number * 3 % 1_000_003


def native_calls(seconds: float) -> None:
    """Computes mostly in native calls of 1.2 s that let no other thread of Python run."""
    library = ctypes.PyDLL(None)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        library.usleep(1_200_000)
        pure_python(0.05)


class TestRenewal:
    @pytest.mark.parametrize(("compute", "seconds"), [(pure_python, 1.5), (native_calls, 2)])
    def test_a_lease_outlasts_a_computation_of_three_times_its_length(
        self, compute: Callable[[float], None], seconds: float, database: Engine, pool: ThreadPoolExecutor
    ) -> None:
        with owned(database, NAME, "a", lasting(seconds), 0) as lease:
            other = wanted(pool, database, seconds, 3 * seconds)
            compute(3 * seconds)
            with pytest.raises(LeaseHeld):
                other.result(20)
            assert lease is not None
            # It is renewed, too: not only was nobody quick enough to take it over.
            assert renewed(database, NAME) == Held("a", lease.token, expired=False)
        assert trail(database) == []

    def test_a_lease_outlasts_an_outage_that_is_shorter(
        self,
        database: Engine,
        pool: ThreadPoolExecutor,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        tries: list[float] = []

        def away_twice(engine: Engine, lease: Lease, seconds: float, runs: list[str] | None) -> bool:
            tries.append(time.monotonic())
            if len(tries) <= 2:
                raise DatabaseUnavailable("It is away.")
            return renew(engine, lease, seconds, runs)

        monkeypatch.setattr(leasing, "renew", away_twice)
        with owned(database, NAME, "a", lasting(1.5), 0) as lease, caplog.at_level(logging.WARNING, "tasks.leasing"):
            with pytest.raises(LeaseHeld):
                wanted(pool, database, 1.5, 4).result(20)
            assert lease is not None
            assert renewed(database, NAME) == Held("a", lease.token, expired=False)
        assert len(tries) > 3
        assert [record.message for record in caplog.records] == ["lease not renewed: It is away."]

    def test_after_a_renewal_that_took_long_the_next_one_follows_at_once(
        self, database: Engine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """What it has told of a worker's runs is old by then."""
        tries: list[float] = []

        def slow_at_first(engine: Engine, lease: Lease, seconds: float, runs: list[str] | None) -> bool:
            tries.append(time.monotonic())
            if len(tries) == 1:
                time.sleep(1.5)
            return renew(engine, lease, seconds, runs)

        monkeypatch.setattr(leasing, "renew", slow_at_first)
        with owned(database, NAME, "a", lasting(4), 0):
            time.sleep(3)
        assert 1.5 <= tries[1] - tries[0] < 2

    def test_a_lease_that_was_lost_is_not_renewed_any_more_and_is_said_to_be(
        self, database: Engine, caplog: pytest.LogCaptureFixture
    ) -> None:
        with owned(database, NAME, "a", lasting(1), 0) as lease, caplog.at_level(logging.WARNING, "tasks.leasing"):
            assert lease is not None
            theirs = claim(database, NAME, "b", 60)
            end = time.monotonic() + 10
            while not caplog.records and time.monotonic() < end:
                time.sleep(0.05)
            time.sleep(0.5)
        assert [record.message for record in caplog.records] == ["lease lost"]
        assert holders(database, [NAME]) == {NAME: Held("b", theirs.token, expired=False)}


class TestSignsOfLife:
    @pytest.fixture(autouse=True)
    def _settings(self, database: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("KYCFLOW_DATABASE_URL", database.url.render_as_string(hide_password=False))
        monkeypatch.setenv("KYCFLOW_LEASE_SECONDS", "1")

    def test_it_lasts_as_long_as_the_block_and_longer_than_the_lease(self, database: Engine) -> None:
        with sign_of_life("run:1", "execution", forget=True):
            assert renewed(database, "run:1").owner == "execution"
            time.sleep(2)
            assert renewed(database, "run:1").owner == "execution"
        assert holders(database, ["run:1"]) == {}

    def test_of_a_worker_it_expires_afterwards_so_that_its_runs_are_known_to_be_orphans(self, database: Engine) -> None:
        with sign_of_life("worker:1", "w", forget=False):
            token = renewed(database, "worker:1").token
        time.sleep(1.2)
        assert holders(database, ["worker:1"]) == {"worker:1": Held("w", token, expired=True)}

    def test_the_next_execution_takes_it_and_the_one_before_does_not_end_it(self, database: Engine) -> None:
        with sign_of_life("run:1", "first", forget=True):
            renewed(database, "run:1")
            second = claim(database, "run:1", "second", 60)
        assert holders(database, ["run:1"]) == {"run:1": Held("second", second.token, expired=False)}

    def test_work_goes_on_without_it(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("KYCFLOW_DATABASE_URL", "postgresql://127.0.0.1:9/none?connect_timeout=2")
        done = False
        with sign_of_life("run:1", "execution", forget=True):
            time.sleep(0.5)
            done = True
        assert done


def test_no_two_starts_of_a_worker_have_one_name() -> None:
    assert len({worker_name("gpu") for _ in range(50)}) == 50


class TestPausedHolder:
    """A virtual machine that is suspended, a laptop's lid, a debugger: the process comes back and knows nothing."""

    @contextmanager
    def holder(self, database: Engine) -> "Iterator[subprocess.Popen[str]]":
        """A process that has begun the comparison and is about to store its result."""
        url = database.url.render_as_string(hide_password=False)
        command = [sys.executable, "-m", "tests.lease_holder", url]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            try:
                assert process.stdout is not None
                assert process.stdout.readline() == "begun\n"
                yield process
            finally:
                process.kill()

    def stop(self, process: "subprocess.Popen[str]", database: Engine) -> None:
        """Stop it, but not in the middle of a renewal: it would keep the database locked for everyone."""
        process.send_signal(signal.SIGSTOP)
        while psutil.Process(process.pid).status() != psutil.STATUS_STOPPED or is_locked(database):
            process.send_signal(signal.SIGCONT)
            time.sleep(0.02)
            process.send_signal(signal.SIGSTOP)
            time.sleep(0.02)

    def end(self, process: "subprocess.Popen[str]") -> str:
        """Let it go on and store its result; what it says of that."""
        process.send_signal(signal.SIGCONT)
        return process.communicate("go on\n", timeout=30)[0]

    def test_it_writes_nothing_after_the_takeover(self, database: Engine) -> None:
        with self.holder(database) as process:
            self.stop(process, database)
            with owned(database, NAME, "next", lasting(LEASE_SECONDS), 20) as lease:
                assert lease is not None
                assert begin(database, lease, "next") is None
                theirs = finish(database, lease, RESULT, "next")
            assert self.end(process) == "LeaseLost\n"
        assert get_comparison(database, KEY) == theirs
        assert (theirs.result, theirs.computations) == (RESULT, 2)
        assert [(line.event, line.actor) for line in trail(database)] == [
            ("computation_started", "holder"),
            ("lease_taken_over", "next"),
            ("computation_started", "next"),
            ("comparison_stored", "next"),
        ]

    def test_it_writes_nothing_while_the_next_owner_computes(self, database: Engine) -> None:
        with self.holder(database) as process:
            self.stop(process, database)
            with owned(database, NAME, "next", lasting(LEASE_SECONDS), 20) as lease:
                assert lease is not None
                assert begin(database, lease, "next") is None
                assert self.end(process) == "LeaseLost\n"
                assert get_comparison(database, KEY) is None
                assert finish(database, lease, RESULT, "next").result == RESULT

    def test_it_stores_its_result_if_nobody_took_over(self, database: Engine) -> None:
        with self.holder(database) as process:
            self.stop(process, database)
            time.sleep(LEASE_SECONDS + 0.2)
            assert holders(database, [NAME])[NAME].expired
            assert self.end(process) == "stored\n"
        found = get_comparison(database, KEY)
        assert found is not None
        assert (found.result, found.computations) == (ITS_RESULT, 1)


def is_locked(database: Engine) -> bool:
    """Whether somebody has a transaction open that writes to the lease."""
    patience = {"sqlite": "PRAGMA busy_timeout = 50", "postgresql": "SET lock_timeout = 50"}[database.dialect.name]
    with database.execution_options(kycflow_write=True).connect() as connection:
        connection.connection.cursor().execute(patience)
        try:
            connection.execute(update(LeaseRow).values(owner=LeaseRow.owner))
        except OperationalError:
            return True
        finally:
            connection.rollback()
            connection.invalidate()  # its patience was its own
    return False
