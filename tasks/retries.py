"""How tasks are tried again: only errors that may pass, with growing, capped and jittered pauses."""

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable
from typing import Any, TypedDict, TypeVar

from tasks.errors import RetryableError, is_retryable

LONGEST_PAUSE_SECONDS = 20

T = TypeVar("T")
log = logging.getLogger(__name__)


def _may_pass(_task: Any, _run: Any, state: Any) -> bool:
    """Prefect's `retry_condition_fn` over our error tree."""
    # Not `state.result()`: in an async task that is a coroutine, and nothing would ever be tried again.
    return isinstance(state.data, BaseException) and is_retryable(state.data)


class RetryOptions(TypedDict):
    """Options of Prefect's `@task` that make it retry."""

    retries: int
    retry_delay_seconds: list[float]
    retry_jitter_factor: float
    retry_condition_fn: Any


def retried(tries: int) -> RetryOptions:
    """`@task` options for that many tries in all: pauses of 1, 2, 4, … 20 s, up to half as much again at random.

    6 tries last half a minute at least, longer than a server's restart.
    """
    return RetryOptions(
        retries=tries - 1,
        retry_delay_seconds=[min(2.0**number, LONGEST_PAUSE_SECONDS) for number in range(tries - 1)],
        retry_jitter_factor=0.5,
        retry_condition_fn=_may_pass,
    )


async def patiently(tries: int, look: Callable[[], Awaitable[T]]) -> T:
    """What a look gives that is no task, as it would only fill the UI: tried like a task, see `retried`."""
    for pause in retried(tries)["retry_delay_seconds"]:
        try:
            return await look()
        except RetryableError as exc:
            log.warning("tried again: %s", exc, extra={"action": "look.tried_again"})
            await asyncio.sleep(pause * random.uniform(1, 1.5))  # noqa: S311 - jitter
    return await look()
