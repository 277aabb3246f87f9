"""Around every request: the token, the size of small bodies, and headers that keep browsers careful."""

import secrets
from collections.abc import MutableMapping
from typing import Any

from pydantic import SecretStr
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from deployments.upload_service.problems import problem

OPEN_PATHS = {"/health", "/docs", "/docs/oauth2-redirect", "/redoc", "/openapi.json"}
MAX_JSON_BYTES = 64 * 1024
HEADERS = {
    "cache-control": "no-store",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
}


class Guard:
    """ASGI middleware. It refuses before a byte of the body is read."""

    def __init__(self, app: ASGIApp, token: SecretStr | None) -> None:
        self.app = app
        self.token = token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        if not self._allowed(scope):
            refusal = problem(
                401,
                "UNAUTHORIZED",
                "Send the service's token as `Authorization: Bearer <token>`.",
                headers={"WWW-Authenticate": "Bearer"},
            )
            await refusal(scope, receive, send_with_headers)
            return
        await self.app(scope, receive if scope["method"] == "PUT" else _limited(receive), send_with_headers)

    def _allowed(self, scope: MutableMapping[str, Any]) -> bool:
        if self.token is None or scope["path"] in OPEN_PATHS:
            return True
        kind, _, given = Headers(scope=scope).get("authorization", "").partition(" ")
        wanted = self.token.get_secret_value().encode()
        return kind.lower() == "bearer" and secrets.compare_digest(given.strip().encode(), wanted)


def _limited(receive: Receive) -> Receive:
    """Bodies other than uploads are read whole, so they must be small."""
    received = 0

    async def limited() -> Message:
        nonlocal received
        message = await receive()
        received += len(message.get("body", b""))
        if received > MAX_JSON_BYTES:
            raise HTTPException(413, f"The body is larger than {MAX_JSON_BYTES} bytes.")
        return message

    return limited
