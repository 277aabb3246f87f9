"""A thread's work that is stopped from outside, and what becomes of what it returns or raises."""

import asyncio
import contextvars
import threading
import time

import pytest

from tasks.threads import in_own_thread

VARIABLE: contextvars.ContextVar[str] = contextvars.ContextVar("VARIABLE", default="")


def test_it_returns_and_raises_and_has_the_callers_context() -> None:
    def fail() -> None:
        raise LookupError("nothing")

    async def ask() -> tuple[str, int]:
        VARIABLE.set("mine")
        with pytest.raises(LookupError, match="nothing"):
            await in_own_thread(fail)
        return await in_own_thread(lambda: (VARIABLE.get(), threading.get_ident()))

    told, thread = asyncio.run(ask())
    assert (told, thread == threading.get_ident()) == ("mine", False)


def test_a_cancelled_caller_stops_the_work_which_cleans_up() -> None:
    events: list[str] = []
    begun = threading.Event()

    def work() -> None:
        try:
            begun.set()
            while True:
                time.sleep(0.01)
        except Exception:
            events.append("taken for a failure")
        finally:
            events.append("cleaned up")

    async def cancel() -> None:
        task = asyncio.create_task(in_own_thread(work))
        assert await asyncio.to_thread(begun.wait, 4)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(asyncio.wait_for(cancel(), 4))
    assert events == ["cleaned up"]


def test_many_at_once_do_not_wait_for_each_other() -> None:
    """As they would for the event loop's own threads."""
    everybody = threading.Barrier(50)

    async def meet() -> None:
        await asyncio.gather(*(in_own_thread(lambda: everybody.wait(10)) for _ in range(50)))

    asyncio.run(meet())
