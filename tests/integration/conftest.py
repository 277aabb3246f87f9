"""Fixtures of the upload service's tests."""

from collections.abc import Iterator

import httpx
import pytest

from tasks.settings import Settings
from tests.uploading import Recorder, client_of


@pytest.fixture
def trigger() -> Recorder:
    return Recorder()


@pytest.fixture
def client(settings: Settings, trigger: Recorder) -> Iterator[httpx.Client]:
    with client_of(settings, trigger) as made:
        yield made


@pytest.fixture
def session(client: httpx.Client, trigger: Recorder) -> httpx.Client:
    """A client with a session of the name s-1. The trigger remembers only what it is told from here on."""
    assert client.post("/sessions", json={"session_id": "s-1"}).status_code == 201
    trigger.told.clear()
    return client
