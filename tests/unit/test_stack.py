"""The parts of the local stack that need no running system."""

import json
import os
import time
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path

import pytest
from filelock import FileLock

import deployments.stack
from deployments.listening import address, listen
from deployments.stack import Stack, running
from tasks.errors import ConfigurationError
from tasks.settings import Settings


def test_who_listens_has_the_port_and_the_next_one_gets_another() -> None:
    """Both may have looked for a free port at the same time: whoever has a socket has its port."""
    with ExitStack() as open_sockets:
        first = open_sockets.enter_context(listen("127.0.0.1", 20_000, ports=100))
        port = first.getsockname()[1]
        assert open_sockets.enter_context(listen("127.0.0.1", port, ports=100)).getsockname()[1] > port
        assert address(first) == f"http://127.0.0.1:{port}"
        with pytest.raises(ConfigurationError, match=f"Port {port} is taken on 127.0.0.1"):
            listen("127.0.0.1", port)


def test_an_address_of_another_machine_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"Cannot listen on 192\.0\.2\.1, port 20000"):
        listen("192.0.2.1", 20_000, ports=100)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """A state folder in which a system says that it runs."""
    said = {"prefect_ui": "http://127.0.0.1:1", "upload_api": "http://127.0.0.1:2", "stack": "a"}
    (tmp_path / "stack.json").write_text(json.dumps(said))
    return Settings(state_dir=tmp_path)


def test_a_system_that_was_killed_does_not_count_as_running(settings: Settings) -> None:
    assert running(settings) is None


def test_a_system_that_holds_its_lock_is_running(settings: Settings) -> None:
    with FileLock(settings.state_dir / "stack.lock"):
        found = running(settings)
    assert found is not None
    assert found.upload_api == "http://127.0.0.1:2"


def test_a_part_that_ends_again_and_again_is_started_again_without_end_and_later_each_time(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prefect's server, say, while its database is away."""
    monkeypatch.setattr(deployments.stack, "LONGEST_PAUSE_SECONDS", 2)
    stack = Stack(settings)
    stack._ready, stack._environment = True, dict(os.environ)
    (settings.state_dir / "logs").mkdir(parents=True)
    starts = [time.monotonic()]
    stack._run("part", "this")  # a module that prints, and ends
    while len(starts) < 5 and time.monotonic() < starts[0] + 60:
        starts += [time.monotonic() for _ in stack.check()]
        time.sleep(0.02)
    stack._processes["part"].wait(10)
    pauses = [after - before for before, after in pairwise(starts)]
    assert len(pauses) == 4
    assert 1 <= pauses[0] < 2 <= min(pauses[1:])
    assert max(pauses) < 4


def test_no_state_folder_means_nothing_runs(tmp_path: Path) -> None:
    assert running(Settings(state_dir=tmp_path / "none")) is None
