"""Runs a server on a socket that is open already (`listening.py`), under uvicorn, until a signal ends it."""

import contextlib
import signal
import socket
from collections.abc import Callable

import uvicorn

from deployments.listening import STACK_HEADER


def run(config: uvicorn.Config, listening: socket.socket, stack: str | None, ready: Callable[[], None]) -> None:
    """Serve until SIGINT or SIGTERM comes, also in a process that was started with SIGINT ignored.

    Args:
        stack: id of the `kycflow up` that this server is part of.
        ready: called once it answers.

    Raises:
        SystemExit: it could not start, with uvicorn's exit code; its log says why.
    """
    if stack is not None:
        config.headers.append((STACK_HEADER, stack))
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    with contextlib.suppress(KeyboardInterrupt):  # uvicorn has ended in order, and raises the signal again
        _Server(config, ready).run(sockets=[listening])


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=sockets)
        self._ready()
