"""Flows that a resident worker runs in tests."""

import asyncio
import sys
import threading
import time
from typing import Any

from prefect import flow, get_run_logger, task
from prefect.artifacts import acreate_markdown_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import FlowRun, State
from prefect.runtime import flow_run as current

EVENTS: list[tuple[str, object]] = []
"""What happened, in the order it did: (what, with what)."""
RELEASE = threading.Event()
"""Lets go those that are stuck."""


def warm_up() -> None:
    """What a worker calls before it takes runs."""
    EVENTS.append(("warm", threading.current_thread().name))


def note_cancellation(flow: object, flow_run: FlowRun, state: State[Any]) -> None:
    """Hook."""
    del flow
    EVENTS.append(("cancelled", (flow_run.id, state.type.value)))


@flow(name="nothing")
async def nothing(number: int = 0) -> int:
    """Do nothing."""
    return number


@task(cache_policy=NO_CACHE)
async def step() -> None:
    """Do nothing."""


@flow(name="like-a-session")
async def like_a_session(number: int = 0) -> None:
    """Cost Prefect what a session costs it: six task runs and an artifact."""
    for _ in range(6):
        await step()
    await acreate_markdown_artifact(key=f"session-{number}", markdown="# Decision")


@flow(name="nothing-in-thread")
def nothing_in_thread(number: int = 0) -> int:
    """Do nothing, in a thread."""
    return number


@task
async def shout(word: str) -> None:
    """Log a word."""
    await asyncio.sleep(0.2)
    get_run_logger().info("word %s", word)


@flow(name="who-am-i", flow_run_name="run {word}")
async def who_am_i(word: str) -> None:
    """Tell the context."""
    await shout(word)
    EVENTS.append(("context", (current.id, current.name, tuple(sorted(current.tags)), current.parameters["word"])))


@flow(name="wait", on_cancellation=[note_cancellation])
async def wait(seconds: float) -> None:
    """Wait without a thread."""
    await asyncio.sleep(seconds)
    EVENTS.append(("waited", current.id))


@flow(name="wait-in-thread", on_cancellation=[note_cancellation])
def wait_in_thread(seconds: float) -> None:
    """Wait, a line of Python after the other."""
    end = time.monotonic() + seconds
    try:
        while time.monotonic() < end:
            time.sleep(0.02)
    finally:
        EVENTS.append(("left", current.id))
    EVENTS.append(("waited", current.id))


@flow(name="stuck")
def stuck() -> None:
    """Wait in one native call."""
    RELEASE.wait()


@flow(name="greedy")
async def greedy(mib: int, seconds: float) -> None:
    """Keep memory for ever."""
    EVENTS.append(("kept", b"." * (mib * 1024 * 1024)))
    await asyncio.sleep(seconds)


@flow(name="hasty", timeout_seconds=1)
async def hasty() -> None:
    """Take longer than allowed."""
    await asyncio.sleep(30)


@flow(name="hasty-in-thread", timeout_seconds=1)
def hasty_in_thread() -> None:
    """Take longer than allowed, in a thread."""
    wait_in_thread.fn(30)


@flow(name="leave")
async def leave() -> None:
    """End the process, if it could."""
    sys.exit(3)


@flow(name="leave-in-thread")
def leave_in_thread() -> None:
    """Likewise."""
    sys.exit(3)


@flow(name="second-time-lucky", retries=1)
async def second_time_lucky() -> None:
    """Fail once."""
    EVENTS.append(("tried", current.id))
    if [what for what, _ in EVENTS].count("tried") == 1:
        raise ValueError("on purpose")


@flow(name="fail")
async def fail() -> None:
    """Fail."""
    raise ValueError("on purpose")
