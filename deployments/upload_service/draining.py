"""A refusal that reaches its client: what is left of the body is taken, and thrown away, before the answer is sent.

A client that is still sending does not read, and a connection that is closed upon it, as it asked for, is reset: the
answer is lost.
"""

import asyncio
from contextlib import suppress
from http import HTTPStatus

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

MOST_BYTES = 512 * 1024 * 1024
MOST_SECONDS = 20
SILENCE_SECONDS = 1
"""Who sends nothing for so long waits for the answer."""


class Draining:
    """ASGI middleware."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        left = "transfer-encoding" in headers or headers.get("content-length", "0") != "0"
        # Who asks before sending has sent nothing yet, and would be told to begin.
        asks = headers.get("expect", "").lower() == "100-continue"

        async def watched() -> Message:
            nonlocal left, asks
            asks = False
            message = await receive()
            left = message["type"] == "http.request" and message.get("more_body", False)
            return message

        async def drain() -> None:
            taken = 0
            while left and taken < MOST_BYTES:
                async with asyncio.timeout(SILENCE_SECONDS):
                    taken += len((await watched()).get("body", b""))

        async def send_afterwards(message: Message) -> None:
            slow = message.get("status") == HTTPStatus.REQUEST_TIMEOUT
            if message["type"] == "http.response.start" and left and not asks and not slow:
                with suppress(TimeoutError):
                    async with asyncio.timeout(MOST_SECONDS):
                        await drain()
            await send(message)

        await self.app(scope, watched, send_afterwards)
