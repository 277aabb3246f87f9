"""For tests of the upload service: small real files, a client over real HTTP, and what takes Prefect's place."""

import hashlib
import http.client
import io
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

import av
import httpx
import numpy as np
from PIL import Image

from deployments.upload_service.app import create_app
from tasks.contracts import Attempt, DecisionKind, Reason, Verdict
from tasks.database import database_for
from tasks.database.attempts import get_attempt, record_decision
from tasks.settings import Settings
from tests.http_server import serving

MATCH = Verdict(decision=DecisionKind.MATCH, reason=Reason.SIMILARITY_SUFFICIENT)
MIB = 1024 * 1024
CARD, VIDEO = "/sessions/s-1/id-image", "/sessions/s-1/selfie-video"


def picture(shade: int = 0) -> bytes:
    """A small JPEG."""
    buffer = io.BytesIO()
    Image.new("RGB", (320, 200), (shade, 90, 120)).save(buffer, "JPEG")
    return buffer.getvalue()


def movie() -> bytes:
    """A small MP4 of one second."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 160, 120, "yuv420p"
        for shade in range(10):
            frame = av.VideoFrame.from_ndarray(np.full((120, 160, 3), shade * 20, np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return buffer.getvalue()


class Recorder:
    """Takes Prefect's place: remembers what it was told."""

    def __init__(self) -> None:
        self.told: list[Attempt] = []
        self.failure: Exception | None = None

    async def __call__(self, attempt: Attempt) -> bool:
        """Raises what it was told to raise."""
        if self.failure:
            raise self.failure
        self.told.append(attempt)
        return True


@contextmanager
def client_of(settings: Settings, trigger: Recorder, **headers: str) -> Iterator[httpx.Client]:
    with (
        serving(create_app(settings, trigger)) as url,
        httpx.Client(base_url=url, timeout=60, headers=headers, trust_env=False) as client,
    ):
        yield client


def sent_blindly(client: httpx.Client, path: str, size: int) -> str:
    """The code of the answer to a client that sends its whole body before it reads, and has the connection closed then.

    Python's `urllib` is one.
    """
    connection = http.client.HTTPConnection(client.base_url.host, client.base_url.port, timeout=60)
    with closing(connection):
        connection.request("PUT", path, body=bytes(size), headers={"Connection": "close"})
        return str(json.load(connection.getresponse())["code"])


def assert_problem(response: httpx.Response, status: int, code: str) -> dict[str, Any]:
    assert response.headers["content-type"] == "application/problem+json", response.text
    body: dict[str, Any] = response.json()
    assert (response.status_code, body["status"], body["code"]) == (status, status, code), body
    assert body["title"]
    assert body["detail"]
    return body


def objects(settings: Settings) -> list[Path]:
    return [path for path in (settings.state_dir / "storage").rglob("*") if path.is_file()]


def incoming(settings: Settings) -> list[Path]:
    return list((settings.state_dir / "incoming").iterdir())


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "It did not come to be within 20 s."
        threading.Event().wait(0.02)


def shown(session: httpx.Client) -> str:
    """SHA-256 of the ID image that counts."""
    sha256: str = session.get("/sessions/s-1").json()["files"]["id_image"]["sha256"]
    return sha256


def sha256_of(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def decide(settings: Settings) -> None:
    engine = database_for(settings)
    record_decision(engine, "s-1", 1, verdict=MATCH, files=get_attempt(engine, "s-1").files, similarity=0.8)


@contextmanager
def raw_put(client: httpx.Client, path: str, announced: int) -> Iterator[socket.socket]:
    """A request of which only the head was sent."""
    where = urlsplit(str(client.base_url))
    with socket.create_connection((cast(str, where.hostname), cast(int, where.port)), timeout=20) as connection:
        connection.sendall(f"PUT {path} HTTP/1.1\r\nHost: test\r\nContent-Length: {announced}\r\n\r\n".encode())
        yield connection


@contextmanager
def half_sent(
    client: httpx.Client, settings: Settings, path: str, content: bytes
) -> Iterator[Callable[[], tuple[int, dict[str, Any]]]]:
    """An upload in the middle of its body, and what sends the rest and gives status and document of the answer."""
    with raw_put(client, path, announced=len(content)) as connection:
        connection.sendall(content[:100])
        wait_until(lambda: bool(incoming(settings)))

        def finish() -> tuple[int, dict[str, Any]]:
            connection.sendall(content[100:])
            answer = http.client.HTTPResponse(connection)
            answer.begin()
            return answer.status, json.loads(answer.read())

        yield finish
