"""Stopping what runs in a thread: at its next line of Python, as nothing stops a thread from outside."""

import asyncio
import contextvars
import ctypes
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

T = TypeVar("T")

STOP_SECONDS = 5
"""How long a thread that is told to stop is waited for. One that is stuck in native code goes on, unheard."""


class Stopped(BaseException):
    """Raised in a thread to stop it. No `except Exception` takes it for a failure."""


def raise_in(thread_id: int, error: type[BaseException] | None) -> None:
    """Raise an exception in a thread at its next line of Python; None takes back one that was not raised yet."""
    ctypes.pythonapi.PyThreadState_SetAsyncExc(
        ctypes.c_ulong(thread_id), ctypes.py_object(error) if error is not None else None
    )


async def in_own_thread(work: Callable[[], T]) -> T:
    """What `work` returns or raises, executed in a thread of its own and in the caller's context.

    Not one of the event loop's threads: there are few of them, and who waits in one for long keeps others out. When the
    caller is cancelled, `work` is stopped.
    """
    done: Future[T] = Future()
    lock, over = threading.Lock(), False

    def run() -> None:
        nonlocal over
        try:
            try:
                result = context.run(work)
            finally:
                with lock:
                    over = True
                    raise_in(threading.get_ident(), None)
        except BaseException as exc:
            done.set_exception(exc if isinstance(exc, Exception) else RuntimeError(f"{type(exc).__name__}: {exc}"))
        else:
            done.set_result(result)

    context = contextvars.copy_context()
    thread = threading.Thread(target=run, name="work of a flow run", daemon=True)
    thread.start()
    waiting = asyncio.wrap_future(done)
    try:
        return await asyncio.shield(waiting)
    except asyncio.CancelledError:
        with lock:
            if not over and thread.ident is not None:
                raise_in(thread.ident, Stopped)
        await asyncio.wait({waiting}, timeout=STOP_SECONDS)
        if waiting.done():
            waiting.exception()  # else asyncio tells of one that nobody has asked for
        raise
