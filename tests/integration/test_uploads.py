"""Uploads over real HTTP, with real files."""

import hashlib
import itertools
import json
import logging
import os
import stat
import threading
import time
import tracemalloc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import SecretStr
from sqlalchemy import Engine

from tasks.contracts import Attempt, Status
from tasks.database import database_for
from tasks.database.attempts import close, get_attempt, register_upload
from tasks.errors import DatabaseUnavailable, OrchestratorUnavailable, StorageUnavailable
from tasks.settings import Settings
from tasks.storage import open_storage
from tasks.storage.local import LocalStorage
from tests.uploading import (
    CARD,
    MIB,
    VIDEO,
    Recorder,
    assert_problem,
    client_of,
    decide,
    half_sent,
    incoming,
    movie,
    objects,
    picture,
    raw_put,
    sent_blindly,
    sha256_of,
    shown,
    wait_until,
)


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

    @pytest.mark.parametrize(
        ("path", "code"),
        [(CARD, "TOO_LARGE"), ("/sessions/none/id-image", "UNKNOWN_SESSION"), ("/sessions", "METHOD_NOT_ALLOWED")],
    )
    def test_who_is_refused_while_sending_reads_why(self, session: httpx.Client, path: str, code: str) -> None:
        assert sent_blindly(session, path, 90 * MIB) == code

    def test_who_is_refused_for_the_token_while_sending_reads_why(self, settings: Settings, trigger: Recorder) -> None:
        locked = settings.model_copy(update={"api_token": SecretStr("t" * 32)})
        with client_of(locked, trigger) as client:
            assert sent_blindly(client, CARD, 90 * MIB) == "UNAUTHORIZED"

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

    def test_a_body_that_trickles_is_given_up(
        self, session: httpx.Client, settings: Settings, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("deployments.upload_service.uploads.BODY_SECONDS", 0.5)
        with raw_put(session, CARD, announced=5 * MIB) as connection:
            connection.settimeout(0.05)
            answer = b""
            for _ in range(100):
                connection.sendall(b"a")
                with suppress(TimeoutError):
                    answer = connection.recv(4096)
                    break
            assert b" 408 " in answer
        assert incoming(settings) == []

    def test_too_many_bodies_at_once_are_told_to_come_again(
        self, settings: Settings, trigger: Recorder, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("deployments.upload_service.uploads.MAX_BODIES", 1)
        with client_of(settings, trigger) as client:
            client.post("/sessions", json={"session_id": "s-1"})
            with half_sent(client, settings, VIDEO, movie()) as finish:
                refused = client.put(CARD, content=picture())
                assert_problem(refused, 503, "TRY_AGAIN")
                assert refused.headers["retry-after"] == "5"
                assert finish()[0] == 201
            assert client.put(CARD, content=picture()).status_code == 201

    def test_only_as_many_files_are_decoded_at_once_as_there_are_cores(
        self, settings: Settings, trigger: Recorder, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        lock, now, most = threading.Lock(), 0, 0

        def check(path: Path, settings: Settings) -> None:
            nonlocal now, most
            with lock:
                now += 1
                most = max(most, now)
            time.sleep(0.1)
            with lock:
                now -= 1

        monkeypatch.setattr("deployments.upload_service.uploads.check_id_image", check)
        monkeypatch.setattr("os.cpu_count", lambda: 2)
        with client_of(settings, trigger) as client, ThreadPoolExecutor(6) as pool:
            client.post("/sessions", json={"session_id": "s-1"})
            answers = pool.map(lambda shade: client.put(CARD, content=picture(shade)), range(6))
            assert {answer.status_code for answer in answers} == {201}
        assert most == 2

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


def delete(settings: Settings) -> None:
    """Delete the session for every reader; what is in storage stays for now."""
    assert close(database_for(settings), "s-1", 1, Status.DELETED, by="test")


class TestWhatHappensMeanwhile:
    """While a body comes, or between two uploads."""

    def test_a_file_that_is_sent_again_replaces_one_that_came_meanwhile(
        self, session: httpx.Client, settings: Settings
    ) -> None:
        session.put(CARD, content=picture(40))
        with half_sent(session, settings, CARD, picture(40)) as finish:
            assert session.put(CARD, content=picture(80)).status_code == 201
            status, answer = finish()
        assert (status, answer["sha256"]) == (201, sha256_of(picture(40)))
        assert shown(session) == sha256_of(picture(40))

    @pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_bytes(b"cut")], ids=["lost", "cut off"])
    def test_a_lost_object_is_healed_by_sending_the_file_again(
        self, session: httpx.Client, settings: Settings, damage: Callable[[Path], object]
    ) -> None:
        session.put(CARD, content=picture())
        damage(objects(settings)[0])
        assert [session.put(CARD, content=picture()).status_code for _ in range(2)] == [201, 200]
        stored = get_attempt(database_for(settings), "s-1").files.id_image
        assert stored is not None
        assert open_storage(settings).size(stored.storage_key) == len(picture())

    def test_a_decision_during_an_upload_leaves_no_object_behind(
        self, session: httpx.Client, settings: Settings
    ) -> None:
        session.put(CARD, content=picture())
        session.put(VIDEO, content=movie())
        before = set(objects(settings))
        with half_sent(session, settings, CARD, picture(40)) as finish:
            decide(settings)
            status, answer = finish()
        assert (status, answer["code"]) == (409, "SESSION_DECIDED")
        assert set(objects(settings)) == before
        assert session.put(CARD, content=picture(40)).json() == answer

    def test_a_deletion_during_an_upload_leaves_no_object_behind(
        self, session: httpx.Client, settings: Settings, trigger: Recorder
    ) -> None:
        with half_sent(session, settings, CARD, picture(40)) as finish:
            delete(settings)
            status, answer = finish()
        assert (status, answer["code"]) == (410, "SESSION_DELETED")
        assert (objects(settings), incoming(settings), trigger.told) == ([], [], [])

    def test_a_deletion_between_the_body_and_its_registration_leaves_no_object_behind(
        self, session: httpx.Client, settings: Settings, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        put = LocalStorage.put

        def put_and_delete_session(self: LocalStorage, key: str, source: Path) -> None:
            put(self, key, source)
            assert len(objects(settings)) == 1
            delete(settings)

        monkeypatch.setattr(LocalStorage, "put", put_and_delete_session)
        assert_problem(session.put(CARD, content=picture()), 410, "SESSION_DELETED")
        assert (objects(settings), incoming(settings)) == ([], [])

    def test_a_file_that_is_there_already_is_refused_after_a_deletion(
        self, session: httpx.Client, settings: Settings, trigger: Recorder
    ) -> None:
        session.put(CARD, content=picture(40))
        with half_sent(session, settings, CARD, picture(40)) as finish:
            delete(settings)
            status, answer = finish()
        assert (status, answer["code"]) == (410, "SESSION_DELETED")
        assert len(trigger.told) == 1

    def test_a_refusal_stays_one_when_its_object_cannot_be_deleted(
        self,
        session: httpx.Client,
        settings: Settings,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        def fail(self: LocalStorage, key: str) -> None:
            raise StorageUnavailable("away")

        monkeypatch.setattr(LocalStorage, "delete", fail)
        session.put(CARD, content=picture())
        with half_sent(session, settings, CARD, picture(40)) as finish:
            decide(settings)
            assert finish()[0] == 409
        [record] = [record for record in caplog.records if getattr(record, "action", "") == "upload.not_deleted"]
        assert open_storage(settings).size(record.__dict__["storage_key"]) == len(picture(40))

    def test_a_lost_commit_keeps_the_object_and_says_what_to_do(
        self, session: httpx.Client, settings: Settings, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def commit_and_lose(*given: Any) -> Attempt:
            register_upload(*given)
            raise DatabaseUnavailable("the answer was lost")

        with monkeypatch.context() as patch:
            patch.setattr("deployments.upload_service.uploads.register_upload", commit_and_lose)
            refused = session.put(CARD, content=picture())
        assert "it has the same effect" in assert_problem(refused, 503, "TRY_AGAIN")["detail"]
        assert session.put(CARD, content=picture()).status_code == 200
        assert len(objects(settings)) == 1


def test_the_same_on_every_database_and_store(database: Engine, storage_settings: Settings, trigger: Recorder) -> None:
    url = database.url.render_as_string(hide_password=False)
    with client_of(storage_settings.model_copy(update={"database_url": url}), trigger) as client:
        client.post("/sessions", json={"session_id": "s-1"})
        assert [client.put(CARD, content=picture()).status_code for _ in range(2)] == [201, 200]
        assert client.put(VIDEO, content=movie()).json()["status"] == "in_progress"
    stored = trigger.told[-1].files.id_image
    assert stored is not None
    assert open_storage(storage_settings).size(stored.storage_key) == len(picture())
