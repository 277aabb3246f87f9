"""The parts of the local stack that need no running system."""

import json
import socket
from pathlib import Path

import pytest
from filelock import FileLock

from deployments.stack import free_port, running
from tasks.settings import Settings


def test_a_taken_port_is_passed_over() -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        assert free_port("127.0.0.1", port) > port


def test_a_port_given_to_another_part_is_passed_over() -> None:
    port = free_port("127.0.0.1", 20_000)
    assert free_port("127.0.0.1", port, port) > port


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """A state folder in which a system says that it runs."""
    said = {"prefect_ui": "http://127.0.0.1:1", "upload_api": "http://127.0.0.1:2"}
    (tmp_path / "stack.json").write_text(json.dumps(said))
    return Settings(state_dir=tmp_path)


def test_a_system_that_was_killed_does_not_count_as_running(settings: Settings) -> None:
    assert running(settings) is None


def test_a_system_that_holds_its_lock_is_running(settings: Settings) -> None:
    with FileLock(settings.state_dir / "stack.lock"):
        found = running(settings)
    assert found is not None
    assert found.upload_api == "http://127.0.0.1:2"


def test_no_state_folder_means_nothing_runs(tmp_path: Path) -> None:
    assert running(Settings(state_dir=tmp_path / "none")) is None
