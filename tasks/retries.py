"""How tasks are tried again: only errors that may pass, with growing, jittered pauses."""

from typing import Any, TypedDict

from prefect.tasks import exponential_backoff

from tasks.errors import is_retryable


def _may_pass(_task: Any, _run: Any, state: Any) -> bool:
    """Prefect's `retry_condition_fn` over our error tree."""
    error = state.result(raise_on_failure=False)
    return isinstance(error, BaseException) and is_retryable(error)


class RetryOptions(TypedDict):
    """Options of Prefect's `@task` that make it retry."""

    retries: int
    retry_delay_seconds: Any
    retry_jitter_factor: float
    retry_condition_fn: Any


def retried(tries: int) -> RetryOptions:
    """`@task` options for that many tries in all: pauses of 1, 2, 4, … seconds, up to half as much again at random."""
    return RetryOptions(
        retries=tries - 1,
        retry_delay_seconds=exponential_backoff(backoff_factor=1),
        retry_jitter_factor=0.5,
        retry_condition_fn=_may_pass,
    )
