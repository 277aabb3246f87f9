"""The upload service over real HTTP: sessions, its token, its contract. Uploads have a file of their own."""

import json
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from tasks.contracts import FileKind
from tasks.settings import Settings
from tests.uploading import CARD, MIB, VIDEO, Recorder, assert_problem, client_of, decide, movie, picture


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
        assert_problem(client.patch("/sessions/none"), 405, "METHOD_NOT_ALLOWED")
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
        declared = {"200", "201", "401", "404", "408", "409", "410", "413", "415", "422", "500", "503"}
        assert declared == set(put["responses"])
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


def test_prefect_is_imported_before_the_first_upload_and_beside_the_event_loop() -> None:
    script = """
import asyncio, sys, threading
from deployments.upload_service.app import create_app

class Watch:
    def find_spec(self, name, path=None, target=None):
        if name == "tasks.dispatch":
            print("in the loop's thread:", threading.current_thread() is threading.main_thread())

sys.meta_path.insert(0, Watch())

async def start():
    app = create_app()
    async with app.router.lifespan_context(app):
        print("ready:", "tasks.dispatch" in sys.modules)

asyncio.run(start())
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=120)
    assert done.stdout.splitlines() == ["in the loop's thread: False", "ready: True"], done.stderr
