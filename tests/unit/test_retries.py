"""Which errors are tried again, and with which pauses."""

import asyncio
from typing import Any

import pytest
from prefect.client.schemas.objects import State
from prefect.states import Completed, Crashed, Failed

from tasks import errors
from tasks.errors import ConfigurationError, KycflowError, LeaseLost, RetryableError
from tasks.retries import retried


def subclasses(kind: type[KycflowError]) -> list[type[KycflowError]]:
    return [one for one in vars(errors).values() if isinstance(one, type) and issubclass(one, kind) and one is not kind]


def made(kind: type[BaseException]) -> BaseException:
    return kind("CODE", "why") if kind is errors.MediaRefused else kind("why")


def tried_again(data: object) -> bool:
    """Asked as Prefect asks for a synchronous task and for an asynchronous one, which must agree."""
    state: State[Any] = Failed(data=data)
    condition = retried(2)["retry_condition_fn"]

    async def ask() -> object:
        return condition(None, None, state)

    answers = {condition(None, None, state), asyncio.run(ask())}
    assert len(answers) == 1
    return answers.pop() is True


@pytest.mark.parametrize("kind", subclasses(RetryableError))
def test_what_may_pass_is_tried_again(kind: type[KycflowError]) -> None:
    assert tried_again(made(kind))


@pytest.mark.parametrize("kind", [*subclasses(errors.TerminalError), ValueError, KeyboardInterrupt])
def test_what_does_not_pass_and_what_is_a_bug_are_not_tried_again(kind: type[BaseException]) -> None:
    assert not tried_again(made(kind))


def test_the_two_kinds_are_told_apart_where_it_matters_most() -> None:
    assert {LeaseLost, ConfigurationError} <= set(subclasses(errors.TerminalError))
    assert {errors.LeaseHeld, errors.DatabaseUnavailable} <= set(subclasses(RetryableError))


def test_a_state_without_an_error_is_not_tried_again() -> None:
    states: list[State[Any]] = [Failed(), Crashed(), Completed(data=1)]
    assert [retried(2)["retry_condition_fn"](None, None, state) for state in states] == [False] * 3


def test_pauses_double_up_to_twenty_seconds() -> None:
    assert retried(8)["retry_delay_seconds"] == [1, 2, 4, 8, 16, 20, 20]


@pytest.mark.parametrize("tries", [1, 2, 3, 6, 7, 30])
def test_there_is_a_pause_before_each_further_try_and_none_is_long(tries: int) -> None:
    options = retried(tries)
    assert options["retries"] == tries - 1
    assert len(options["retry_delay_seconds"]) == tries - 1
    longest = max(options["retry_delay_seconds"], default=0) * (1 + options["retry_jitter_factor"])
    assert longest <= 30


def test_six_tries_outlast_a_servers_restart() -> None:
    assert sum(retried(6)["retry_delay_seconds"]) >= 30
