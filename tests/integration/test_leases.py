"""Leases as rows, and the writes that prove them, on SQLite and PostgreSQL.

A lease taken for less than no time has expired, so nothing here has to wait for that.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Event
from uuid import UUID

import pytest
from sqlalchemy import Engine, select

from tasks.contracts import EngineConfig, FaceComparison, StoredFile
from tasks.database.comparisons import (
    Loss,
    begin_comparison,
    finish_comparison,
    get_comparison,
    losses,
    note_loss,
)
from tasks.database.engine import reading, writing
from tasks.database.leases import (
    Held,
    Lease,
    break_leases,
    claim,
    forget_expired,
    holders,
    prove,
    release,
    renew,
    take,
)
from tasks.database.status import trace
from tasks.database.tables import LeaseRow
from tasks.errors import LeaseLost
from tests.attempts import at_once, trail
from tests.databases import everything

KEY = "c" * 64
NAME = f"comparison:{KEY}"
FILE = StoredFile(storage_key="file", sha256="a" * 64, size_bytes=5)
OVER = -1.0
"""Seconds of a lease that has expired at once."""


def taken(database: Engine, owner: str = "a", seconds: float = 60, over: int | None = None) -> Lease:
    """The lease, which must be to be had."""
    found = take(database, NAME, owner, seconds, over=over)
    assert isinstance(found, Lease), found
    return found


def names(database: Engine) -> list[str]:
    with reading(database) as session:
        return list(session.scalars(select(LeaseRow.name).order_by(LeaseRow.name)))


class TestTaking:
    def test_a_free_lease_is_taken(self, database: Engine) -> None:
        lease = taken(database)
        assert lease.name == NAME
        assert holders(database, [NAME, "another"]) == {NAME: Held("a", lease.token, expired=False)}

    def test_a_held_lease_is_not_taken_whatever_token_is_named(self, database: Engine) -> None:
        token = taken(database).token
        for over in (None, token - 1, token, token + 1):
            assert take(database, NAME, "b", 60, over=over) == Held("a", token, expired=False)

    def test_its_own_owner_does_not_take_it_twice(self, database: Engine) -> None:
        token = taken(database).token
        assert take(database, NAME, "a", 60) == Held("a", token, expired=False)

    def test_a_released_lease_is_taken_and_its_token_grows(self, database: Engine) -> None:
        tokens = []
        for owner in "abc":
            lease = taken(database, owner)
            tokens.append(lease.token)
            release(database, lease)
            assert holders(database, [NAME]) == {}
        assert tokens == [tokens[0], tokens[0] + 1, tokens[0] + 2]

    def test_an_expired_lease_is_not_taken_by_who_has_not_watched_it(self, database: Engine) -> None:
        token = taken(database, seconds=OVER).token
        assert take(database, NAME, "b", 60) == Held("a", token, expired=True)

    def test_an_expired_lease_is_taken_over_from_the_token_that_was_watched_only(self, database: Engine) -> None:
        release(database, taken(database, seconds=OVER))
        token = taken(database, seconds=OVER).token
        for other in (0, token - 1, token + 1):
            assert take(database, NAME, "b", 60, over=other) == Held("a", token, expired=True)
        assert take(database, NAME, "b", 60, over=token) == Lease(NAME, token + 1)
        assert take(database, NAME, "c", 60, over=token) == Held("b", token + 1, expired=False)

    def test_a_takeover_leaves_a_trace_and_nothing_else_does(self, database: Engine) -> None:
        release(database, taken(database))
        token = taken(database, seconds=OVER).token
        assert trail(database) == []
        taken(database, "b", over=token)
        [line] = trail(database)
        assert (line.event, line.actor, line.detail) == ("lease_taken_over", "b", f"{NAME}, token {token + 1}")

    def test_one_of_many_racers_takes_a_free_lease(self, database: Engine) -> None:
        found = at_once(16, lambda number: take(database, NAME, f"owner {number}", 60))
        [won] = [lease for lease in found if isinstance(lease, Lease)]
        assert {held.token for held in found} == {won.token}

    def test_one_of_many_racers_takes_a_released_lease(self, database: Engine) -> None:
        before = taken(database)
        release(database, before)
        found = at_once(16, lambda number: take(database, NAME, f"owner {number}", 60))
        assert [lease for lease in found if isinstance(lease, Lease)] == [Lease(NAME, before.token + 1)]

    def test_one_of_many_racers_takes_an_expired_lease_over(self, database: Engine) -> None:
        token = taken(database, seconds=OVER).token
        found = at_once(16, lambda number: take(database, NAME, f"owner {number}", 60, over=token))
        assert [lease for lease in found if isinstance(lease, Lease)] == [Lease(NAME, token + 1)]
        assert len(trail(database)) == 1


class TestRenewing:
    def test_an_expired_lease_that_nobody_took_is_still_its_owners(self, database: Engine) -> None:
        lease = taken(database, seconds=OVER)
        assert renew(database, lease, 60)
        assert holders(database, [NAME]) == {NAME: Held("a", lease.token, expired=False)}

    def test_a_lease_that_was_taken_over_is_not_renewed(self, database: Engine) -> None:
        lost = taken(database, seconds=OVER)
        theirs = taken(database, "b", seconds=OVER, over=lost.token)
        assert not renew(database, lost, 60)
        assert holders(database, [NAME]) == {NAME: Held("b", theirs.token, expired=True)}

    def test_a_released_lease_is_not_renewed(self, database: Engine) -> None:
        lease = taken(database)
        release(database, lease)
        assert not renew(database, lease, 60)
        assert holders(database, [NAME]) == {}

    def test_who_lost_a_lease_does_not_release_it(self, database: Engine) -> None:
        lost = taken(database, seconds=OVER)
        theirs = taken(database, "b", over=lost.token)
        release(database, lost)
        release(database, lost, forget=True)
        assert holders(database, [NAME]) == {NAME: Held("b", theirs.token, expired=False)}

    def test_broken_leases_are_free_and_their_owner_is_fenced(self, database: Engine) -> None:
        first, second = taken(database), take(database, "run:1", "a", 60)
        others = take(database, "run:2", "b", 60)
        assert isinstance(second, Lease)
        assert isinstance(others, Lease)
        break_leases(database, "a")
        assert [renew(database, lease, 60) for lease in (first, second, others)] == [False, False, True]
        assert holders(database, [NAME, "run:1", "run:2"]) == {"run:2": Held("b", others.token, expired=False)}
        assert taken(database, "c").token > first.token
        with writing(database) as session, pytest.raises(LeaseLost):
            prove(session, first)

    def test_a_token_does_not_come_again_after_a_break(self, database: Engine) -> None:
        tokens = [taken(database).token]
        for _ in range(3):
            break_leases(database, "a")
            tokens.append(taken(database).token)
        assert tokens == sorted(set(tokens))


class TestClaiming:
    def test_the_latest_claim_counts_and_ends_the_one_before(self, database: Engine) -> None:
        first = claim(database, "worker:w", "a", 60)
        second = claim(database, "worker:w", "b", 60)
        assert (renew(database, first, 60), renew(database, second, 60)) == (False, True)
        assert holders(database, ["worker:w"]) == {"worker:w": Held("b", second.token, expired=False)}

    def test_racing_claims_have_different_tokens(self, database: Engine) -> None:
        claims = at_once(8, lambda number: claim(database, "worker:w", f"owner {number}", 60))
        assert len({lease.token for lease in claims}) == 8
        assert sum(renew(database, lease, 60) for lease in claims) == 1

    def test_a_claim_that_is_forgotten_leaves_no_row(self, database: Engine) -> None:
        lease = claim(database, "run:1", "a", 60)
        release(database, lease, forget=True)
        assert names(database) == []

    def test_old_signs_of_life_are_forgotten_and_tokens_of_comparisons_are_not(self, database: Engine) -> None:
        taken(database, seconds=-100)
        claim(database, "run:old", "a", -100)
        claim(database, "worker:old", "a", -100)
        claim(database, "run:expired", "a", -10)
        claim(database, "run:alive", "a", 60)
        release(database, claim(database, "run:released", "a", 60))
        assert forget_expired(database, 50) == 2
        assert names(database) == [NAME, "run:alive", "run:expired", "run:released"]


def taken_over(database: Engine, lease: Lease) -> None:
    taken(database, "b", over=lease.token)


def broken(database: Engine, _lease: Lease) -> None:
    break_leases(database, "a")


def released(database: Engine, lease: Lease) -> None:
    release(database, lease)


def released_and_taken(database: Engine, lease: Lease) -> None:
    release(database, lease)
    taken(database, "b")


def forgotten(database: Engine, lease: Lease) -> None:
    release(database, lease, forget=True)


def forgotten_and_taken(database: Engine, lease: Lease) -> None:
    release(database, lease, forget=True)
    taken(database, "b")


@pytest.mark.parametrize("lose", [taken_over, broken, released, released_and_taken, forgotten, forgotten_and_taken])
class TestWritingUnderALostLease:
    def test_a_comparison_is_not_begun(self, lose: Callable[[Engine, Lease], None], database: Engine) -> None:
        lease = taken(database, seconds=OVER)
        lose(database, lease)
        before = everything(database)
        with pytest.raises(LeaseLost, match=NAME):
            begin_comparison(database, lease, KEY, FILE, FILE, EngineConfig(), by="a")
        assert everything(database) == before

    def test_a_comparison_is_not_finished(self, lose: Callable[[Engine, Lease], None], database: Engine) -> None:
        lease = taken(database, seconds=OVER)
        begin_comparison(database, lease, KEY, FILE, FILE, EngineConfig(), by="a")
        lose(database, lease)
        before = everything(database)
        with pytest.raises(LeaseLost, match=NAME):
            finish_comparison(
                database, lease, KEY, result=FaceComparison(similarity=0.9), picture_key="picture", by="a"
            )
        assert everything(database) == before


def test_an_expired_lease_that_nobody_took_is_proof_enough(database: Engine) -> None:
    lease = taken(database, seconds=OVER)
    assert begin_comparison(database, lease, KEY, FILE, FILE, EngineConfig(), by="a") is None
    made = finish_comparison(database, lease, KEY, result=FaceComparison(similarity=0.9), picture_key=None, by="a")
    assert get_comparison(database, KEY) == made


def test_deaths_are_counted_for_the_run_that_computed_while_its_process_died(database: Engine) -> None:
    run, other = UUID(int=1), UUID(int=2)
    lost = {run: KEY, other: KEY}

    def deaths() -> dict[UUID, int]:
        return {one: loss.deaths for one, loss in losses(database, lost, {run: "worker", other: "another"}).items()}

    assert losses(database, {}, {}) == {}
    lease = taken(database)
    note_loss(database, KEY, run, computing=True, by="sweep")
    assert deaths() == {run: 0, other: 0}, "It had not begun."
    begin_comparison(database, lease, KEY, FILE, FILE, EngineConfig(), by=f"flow run {run}")
    assert deaths() == {run: 1, other: 0}
    for _ in range(2):
        note_loss(database, KEY, run, computing=True, by="sweep")
        note_loss(database, KEY, other, computing=True, by="sweep")
        assert deaths() == {run: 1, other: 0}, "Noted once; lost again before it began, it is one still."
    begin_comparison(database, lease, KEY, FILE, FILE, EngineConfig(), by=f"flow run {run}")
    begin_comparison(database, lease, KEY, FILE, FILE, EngineConfig(), by=f"flow run {run}")
    assert deaths() == {run: 2, other: 0}, "A task that was retried in one process counts once."
    result = FaceComparison(similarity=0.9)
    finish_comparison(database, lease, KEY, result=result, picture_key=None, by=f"flow run {run}")
    note_loss(database, KEY, run, computing=True, by="sweep")
    assert deaths() == {run: 1, other: 0}, "It had stored its row."


def test_of_a_workers_lost_runs_the_one_that_began_last_computed(database: Engine) -> None:
    """The others were about to store what they had. Else a neighbour that kills twice takes them along."""
    first, second, elsewhere = UUID(int=1), UUID(int=2), UUID(int=3)
    keys = {first: "a" * 64, second: "b" * 64, elsewhere: "c" * 64}
    for run in (elsewhere, first, second):
        lease = take(database, f"comparison:{keys[run]}", str(run), 60)
        assert isinstance(lease, Lease)
        begin_comparison(database, lease, keys[run], FILE, FILE, EngineConfig(), by=f"flow run {run}")
    found = losses(database, keys, {first: "worker", second: "worker", elsewhere: "another"})
    assert found == {first: Loss(), second: Loss(True, 1), elsewhere: Loss(True, 1)}
    for run, loss in found.items():
        note_loss(database, keys[run], run, computing=loss.computing, by="sweep")
    again = losses(database, {first: keys[first]}, {first: "worker"})
    assert again == {first: Loss()}, "Lost again before it began again."


def test_nobody_takes_a_lease_over_between_its_proof_and_what_is_written_under_it(database: Engine) -> None:
    lease = taken(database, seconds=OVER)
    asked = Event()

    def take_over() -> Lease:
        asked.set()
        return taken(database, "b", over=lease.token)

    with ThreadPoolExecutor(1) as pool:
        with writing(database) as session:
            prove(session, lease)
            waiting = pool.submit(take_over)
            asked.wait(10)
            with pytest.raises(TimeoutError):
                waiting.result(0.5)
            trace(session, "written", by="a")
        assert waiting.result(20) == Lease(NAME, lease.token + 1)
    assert [line.event for line in trail(database)] == ["written", "lease_taken_over"]
