"""Comparisons of one process take turns at computing."""

import threading

import pytest

from tasks import comparison


def test_a_comparison_that_never_ends_is_passed_by_and_the_next_ones_take_turns_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(comparison, "TURN_SECONDS", 0.3)
    monkeypatch.setattr(comparison, "_turns", [threading.Lock()])
    at_once, most, over = [0], [0], threading.Event()

    def stuck() -> None:
        with comparison._alone():
            over.wait(30)

    def computes() -> None:
        with comparison._alone():
            at_once[0] += 1
            most[0] = max(most[0], at_once[0])
            over.wait(0.05)
            at_once[0] -= 1

    first = threading.Thread(target=stuck)
    first.start()
    while not comparison._turns[0].locked():
        over.wait(0.01)
    others = [threading.Thread(target=computes) for _ in range(3)]
    for thread in others:
        thread.start()
    for thread in others:
        thread.join(20)
        assert not thread.is_alive(), "The one that is stuck keeps it."
    assert most == [1]
    over.set()
    first.join(20)
