"""The upload service, over real HTTP with real files."""

import hashlib
import io
import itertools
import json
import logging
import os
import socket
import stat
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

import av
import httpx
import numpy as np
import pytest
from PIL import Image
from sqlalchemy import Engine

from deployments.upload_service.app import create_app
from tasks.contracts import Attempt, DecisionKind, FileKind, Reason, Verdict
from tasks.database import database_for
from tasks.database.attempts import get_attempt, record_decision
from tasks.errors import OrchestratorUnavailable
from tasks.settings import Settings
from tasks.storage import open_storage
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

    async def __call__(self, attempt: Attempt) -> None:
        """Raises what it was told to raise."""
        if self.failure:
            raise self.failure
        self.told.append(attempt)


@pytest.fixture
def trigger() -> Recorder:
    return Recorder()


@contextmanager
def client_of(settings: Settings, trigger: Recorder, **headers: str) -> Iterator[httpx.Client]:
    with (
        serving(create_app(settings, trigger)) as url,
        httpx.Client(base_url=url, timeout=60, headers=headers, trust_env=False) as client,
    ):
        yield client


@pytest.fixture
def client(settings: Settings, trigger: Recorder) -> Iterator[httpx.Client]:
    with client_of(settings, trigger) as made:
        yield made


@pytest.fixture
def session(client: httpx.Client) -> httpx.Client:
    """A client with a session of the name s-1."""
    assert client.post("/sessions", json={"session_id": "s-1"}).status_code == 201
    return client


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


def decide(settings: Settings) -> None:
    engine = database_for(settings)
    record_decision(engine, "s-1", 1, verdict=MATCH, files=get_attempt(engine, "s-1").files, similarity=0.8)


class TestSessions:
    def test_a_session_is_created_once(self, client: httpx.Client) -> None:
        first = client.post("/sessions", json={"session_id": "s-1", "deadline_seconds": 60})
        again = client.post("/sessions", json={"session_id": "s-1", "deadline_seconds": 90})
        assert (first.status_code, again.status_code) == (201, 200)
        assert first.json() == again.json() == client.get("/sessions/s-1").json()
        assert first.json()["status"] == "awaiting_files"
        assert first.json()["flow_run_name"] == "s-1 attempt 1"

    def test_fifty_racers_create_one_session(self, client: httpx.Client) -> None:
        with ThreadPoolExecutor(50) as pool:
            answers = list(pool.map(lambda _: client.post("/sessions", json={"session_id": "s-1"}), range(50)))
        assert sorted(answer.status_code for answer in answers) == [200] * 49 + [201]

    @pytest.mark.parametrize(
        "session_id", ["../etc/passwd", "UPPER", "a" * 65, "", "-a", "a.b", "a b", "ä", "a\n", "a/b"]
    )
    def test_a_bad_session_id_is_refused_in_clear_words(self, client: httpx.Client, session_id: str) -> None:
        body = assert_problem(client.post("/sessions", json={"session_id": session_id}), 422, "INVALID_REQUEST")
        assert body["errors"] == [
            {
                "field": "session_id",
                "message": "must be 1 to 64 of a-z, 0-9, '-' and '_', beginning with a letter or digit.",
            }
        ]

    @pytest.mark.parametrize("path", ["/sessions/UPPER", "/sessions/..%2e", "/sessions/a%00b", "/sessions/" + "a" * 65])
    def test_a_bad_session_id_in_the_path_is_refused(self, client: httpx.Client, path: str) -> None:
        for response in (client.get(path), client.put(f"{path}/id-image", content=picture())):
            assert "beginning with a letter" in assert_problem(response, 422, "INVALID_REQUEST")["detail"]

    @pytest.mark.parametrize(
        "body", [b"", b"{", b"[]", b'{"session_id": "a", "name": "Ada"}', b'{"session_id": "a", "deadline_seconds": 1}']
    )
    def test_a_body_that_is_no_new_session_is_refused(self, client: httpx.Client, body: bytes) -> None:
        response = client.post("/sessions", content=body, headers={"content-type": "application/json"})
        assert "Ada" not in json.dumps(assert_problem(response, 422, "INVALID_REQUEST"))

    def test_a_large_json_body_is_refused(self, client: httpx.Client) -> None:
        response = client.post(
            "/sessions", content=iter([b" " * MIB] * 3), headers={"content-type": "application/json"}
        )
        assert_problem(response, 413, "TOO_LARGE")

    def test_unknown_things_are_problems_too(self, client: httpx.Client) -> None:
        assert_problem(client.get("/sessions/none"), 404, "UNKNOWN_SESSION")
        assert_problem(client.post("/sessions/none/attempts"), 404, "UNKNOWN_SESSION")
        assert_problem(client.get("/nowhere"), 404, "NOT_FOUND")
        assert_problem(client.delete("/sessions/none"), 405, "METHOD_NOT_ALLOWED")
        assert_problem(client.get("/sessions/none?attempt=0"), 422, "INVALID_REQUEST")

    def test_a_further_attempt_comes_after_a_decision(
        self, session: httpx.Client, settings: Settings, trigger: Recorder
    ) -> None:
        session.put(CARD, content=picture())
        session.put(VIDEO, content=movie())
        assert_problem(session.post("/sessions/s-1/attempts"), 409, "SESSION_UNDECIDED")
        decide(settings)
        seen = session.get("/sessions/s-1").json()
        assert (seen["status"], seen["decision"], seen["similarity"]) == ("decided", "match", 0.8)
        further = session.post("/sessions/s-1/attempts")
        assert (further.status_code, further.json()["attempt"]) == (201, 2)
        assert session.put(CARD, content=picture()).json()["attempt"] == 2
        assert session.get("/sessions/s-1?attempt=1").json()["decision"] == "match"
        assert trigger.told[-1].attempt == 2


class TestUploads:
    def test_both_files_are_stored_and_the_flow_run_is_told(
        self, session: httpx.Client, settings: Settings, trigger: Recorder
    ) -> None:
        card = picture()
        first = session.put(CARD, content=card)
        assert first.status_code == 201
        assert first.json() == {
            "session_id": "s-1",
            "attempt": 1,
            "kind": "id_image",
            "sha256": hashlib.sha256(card).hexdigest(),
            "size_bytes": len(card),
            "status": "awaiting_files",
            "started": True,
        }
        assert session.put(VIDEO, content=movie()).json()["status"] == "in_progress"
        assert [attempt.files.complete for attempt in trigger.told] == [False, True]
        assert [path.read_bytes() for path in objects(settings) if "id_image" in path.parts] == [card]
        assert {stat.S_IMODE(path.stat().st_mode) for path in objects(settings)} == {0o600}
        assert incoming(settings) == []

    def test_a_file_is_replaced_until_there_is_a_decision(self, session: httpx.Client, settings: Settings) -> None:
        session.put(VIDEO, content=movie())
        for shade in (10, 20):
            assert session.put(CARD, content=picture(shade)).status_code == 201
        newest = session.get("/sessions/s-1").json()["files"]["id_image"]["sha256"]
        assert newest == hashlib.sha256(picture(20)).hexdigest()
        decide(settings)
        assert_problem(session.put(CARD, content=picture(30)), 409, "SESSION_DECIDED")
        assert len(objects(settings)) == 3

    def test_an_upload_replays_its_own_lost_answer(
        self, session: httpx.Client, settings: Settings, trigger: Recorder
    ) -> None:
        answers = [session.put(CARD, content=picture()) for _ in range(2)]
        assert [answer.status_code for answer in answers] == [201, 200]
        assert answers[0].json() == answers[1].json()
        assert len(objects(settings)) == 1
        assert len(trigger.told) == 2

    def test_when_prefect_is_away_the_file_is_stored_all_the_same(
        self, session: httpx.Client, trigger: Recorder, caplog: pytest.LogCaptureFixture
    ) -> None:
        trigger.failure = OrchestratorUnavailable("away")
        with caplog.at_level(logging.INFO):
            answer = session.put(CARD, content=picture())
        assert (answer.status_code, answer.json()["started"]) == (201, False)
        assert session.get("/sessions/s-1").json()["files"]["id_image"]
        [record] = [record for record in caplog.records if getattr(record, "action", "") == "upload.not_triggered"]
        assert (record.__dict__["session_id"], record.__dict__["attempt"]) == ("s-1", 1)

    @pytest.mark.parametrize(
        ("path", "content", "status", "code"),
        [
            (CARD, b"", 422, "EMPTY"),
            (CARD, b"GIF89a no jpeg", 415, "NOT_AN_IMAGE"),
            (CARD, movie(), 415, "NOT_AN_IMAGE"),
            (CARD, picture()[:-200], 422, "TRUNCATED"),
            (VIDEO, b"", 422, "EMPTY"),
            (VIDEO, picture(), 415, "NOT_A_VIDEO"),
            (VIDEO, movie()[:-400], 422, "TRUNCATED"),
        ],
    )
    def test_what_cannot_be_the_file_is_refused_by_its_content(
        self,
        session: httpx.Client,
        settings: Settings,
        trigger: Recorder,
        path: str,
        content: bytes,
        status: int,
        code: str,
    ) -> None:
        response = session.put(path, content=content, headers={"content-type": "image/jpeg"})
        assert_problem(response, status, code)
        assert (incoming(settings), objects(settings), trigger.told) == ([], [], [])

    def test_an_empty_chunked_body_is_empty(self, session: httpx.Client) -> None:
        assert_problem(session.put(CARD, content=iter(())), 422, "EMPTY")

    def test_a_form_is_told_what_to_do(self, session: httpx.Client) -> None:
        response = session.put(CARD, files={"file": picture()})
        assert "curl --upload-file" in assert_problem(response, 415, "NOT_AN_IMAGE")["detail"]

    def test_an_unknown_session_is_refused_before_the_body_is_read(self, client: httpx.Client) -> None:
        with raw_put(client, "/sessions/none/id-image", announced=5 * MIB) as connection:
            assert b" 404 " in connection.recv(4096)

    def test_an_announced_size_above_the_limit_is_refused_before_the_body_is_read(
        self, session: httpx.Client, settings: Settings
    ) -> None:
        with raw_put(session, CARD, announced=settings.max_id_image_bytes + 1) as connection:
            assert b" 413 " in connection.recv(4096)

    def test_the_limit_holds_for_bytes_that_nobody_announced(self, session: httpx.Client, settings: Settings) -> None:
        body = itertools.repeat(bytes(MIB), settings.max_id_image_bytes // MIB + 1)
        assert_problem(session.put(CARD, content=body), 413, "TOO_LARGE")
        assert incoming(settings) == objects(settings) == []

    def test_a_client_that_goes_away_leaves_nothing_behind(
        self, session: httpx.Client, settings: Settings, caplog: pytest.LogCaptureFixture
    ) -> None:
        with caplog.at_level(logging.INFO), raw_put(session, CARD, announced=5 * MIB) as connection:
            connection.sendall(bytes(3 * MIB))
            wait_until(lambda: sum(path.stat().st_size for path in incoming(settings)) > 0)
            [file] = incoming(settings)
            assert stat.S_IMODE(file.stat().st_mode) == 0o600
            connection.close()
            wait_until(lambda: not incoming(settings))
        wait_until(lambda: any(getattr(record, "action", "") == "upload.interrupted" for record in caplog.records))
        assert objects(settings) == []
        assert session.get("/sessions/s-1").json()["files"]["id_image"] is None

    def test_a_body_that_stalls_is_given_up(
        self, session: httpx.Client, settings: Settings, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("deployments.upload_service.uploads.STALL_SECONDS", 0.2)
        with raw_put(session, CARD, announced=5 * MIB) as connection:
            connection.sendall(bytes(1000))
            assert b" 408 " in connection.recv(4096)
        assert incoming(settings) == []

    def test_memory_stays_flat_while_a_large_body_streams(self, session: httpx.Client, settings: Settings) -> None:
        block = bytes(MIB)
        session.put(VIDEO, content=iter([block]))  # what is imported once
        tracemalloc.start()
        try:
            assert_problem(session.put(VIDEO, content=itertools.repeat(block, 90)), 415, "NOT_A_VIDEO")
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert peak < 10 * MIB
        assert incoming(settings) == []

    def test_what_a_killed_process_left_is_deleted_at_the_next_start(
        self, settings: Settings, trigger: Recorder
    ) -> None:
        folder = settings.state_dir / "incoming"
        folder.mkdir(parents=True)
        (folder / "old").write_bytes(picture())
        (folder / "young").write_bytes(picture())
        old = time.time() - 7200
        os.utime(folder / "old", (old, old))
        with client_of(settings, trigger):
            assert [path.name for path in incoming(settings)] == ["young"]

    def test_a_store_that_cannot_be_used_records_nothing(self, session: httpx.Client, settings: Settings) -> None:
        (settings.state_dir / "storage").write_text("no folder")
        body = assert_problem(session.put(CARD, content=picture()), 500, "INTERNAL")
        assert str(settings.state_dir) not in json.dumps(body)
        assert session.get("/sessions/s-1").json()["files"]["id_image"] is None


def test_the_same_on_every_database_and_store(database: Engine, storage_settings: Settings, trigger: Recorder) -> None:
    url = database.url.render_as_string(hide_password=False)
    with client_of(storage_settings.model_copy(update={"database_url": url}), trigger) as client:
        client.post("/sessions", json={"session_id": "s-1"})
        assert [client.put(CARD, content=picture()).status_code for _ in range(2)] == [201, 200]
        assert client.put(VIDEO, content=movie()).json()["status"] == "in_progress"
    stored = trigger.told[-1].files.id_image
    assert stored is not None
    assert open_storage(storage_settings).size(stored.storage_key) == len(picture())


class TestToken:
    @pytest.fixture
    def guarded(self, tmp_path: Path, trigger: Recorder) -> Iterator[httpx.Client]:
        with client_of(Settings(state_dir=tmp_path / "state", api_token="open sesame"), trigger) as made:
            yield made

    @pytest.mark.parametrize("given", [None, "Bearer wrong", "Bearer", "Basic open sesame", "open sesame"])
    def test_without_it_nothing_is_done(self, guarded: httpx.Client, given: str | None) -> None:
        headers = {"authorization": given} if given else {}
        for response in (
            guarded.post("/sessions", json={"session_id": "s-1"}, headers=headers),
            guarded.get("/sessions/s-1", headers=headers),
            guarded.put(CARD, content=picture(), headers=headers),
        ):
            assert_problem(response, 401, "UNAUTHORIZED")
            assert response.headers["www-authenticate"] == "Bearer"

    def test_with_it_all_is_as_ever(self, guarded: httpx.Client) -> None:
        guarded.headers["authorization"] = "Bearer open sesame"
        assert guarded.post("/sessions", json={"session_id": "s-1"}).status_code == 201

    def test_health_and_documentation_need_none(self, guarded: httpx.Client) -> None:
        assert {guarded.get(path).status_code for path in ("/health", "/docs", "/openapi.json")} == {200}


class TestContract:
    def test_health(self, client: httpx.Client) -> None:
        answer = client.get("/health")
        assert (answer.status_code, answer.json()) == (200, {"status": "ok"})
        assert answer.headers["cache-control"] == "no-store"
        assert answer.headers["x-content-type-options"] == "nosniff"

    def test_openapi_documents_bodies_and_problems(self, client: httpx.Client) -> None:
        document = client.get("/openapi.json").json()
        put = document["paths"]["/sessions/{session_id}/id-image"]["put"]
        assert put["requestBody"]["content"]["image/jpeg"]["schema"] == {"type": "string", "format": "binary"}
        assert {"200", "201", "401", "404", "408", "409", "413", "415", "422", "500", "503"} == set(put["responses"])
        assert all(
            list(response["content"]) == ["application/problem+json"]
            for operations in document["paths"].values()
            for operation in operations.values()
            for status, response in operation["responses"].items()
            if int(status) >= 400
        )
        assert "Problem" in document["components"]["schemas"]
        assert "HTTPValidationError" not in json.dumps(document)

    @pytest.mark.parametrize("kind", list(FileKind))
    def test_each_kind_of_file_has_its_path(self, client: httpx.Client, kind: FileKind) -> None:
        assert f"/sessions/{{session_id}}/{kind.replace('_', '-')}" in client.get("/openapi.json").json()["paths"]


@contextmanager
def raw_put(client: httpx.Client, path: str, announced: int) -> Iterator[socket.socket]:
    """A request of which only the head was sent."""
    where = urlsplit(str(client.base_url))
    with socket.create_connection((cast(str, where.hostname), cast(int, where.port)), timeout=20) as connection:
        connection.sendall(f"PUT {path} HTTP/1.1\r\nHost: test\r\nContent-Length: {announced}\r\n\r\n".encode())
        yield connection
