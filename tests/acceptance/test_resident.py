"""Resident workers as processes: told to end, they lose nothing and compute nothing twice."""

import os
import signal
import time
from pathlib import Path

import psutil
import pytest

from deployments.demo_card import draw_card
from deployments.demo_media import DemoMedia, portraits
from tasks.database.audit import trail
from tasks.settings import Settings
from tests.acceptance.test_duplicates import Pair
from tests.system import System, eventually


@pytest.fixture
def pair(
    system: System,
    session_id: str,
    demo_media: DemoMedia,
    media_settings: Settings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Pair:
    """A genuine pair that was never compared."""
    monkeypatch.setenv("KYCFLOW_STATE_DIR", str(system.settings.state_dir))
    card = tmp_path / "card.jpg"
    card.write_bytes(draw_card(portraits(media_settings)[0], serial=time.time_ns() % 10**6))
    return Pair(system, session_id, card, demo_media.selfie_video)


def test_a_worker_told_to_end_in_the_middle_of_a_comparison_finishes_it(pair: Pair) -> None:
    """Without the draining it is handed back, or lost, and computed twice."""
    pair.trigger()
    pair.until(True, "computing")
    told = pair.system.worker("gpu")
    os.kill(told.pid, signal.SIGTERM)
    assert not pair.stored(), "It was told too late: the row is there."
    assert pair.decided() == "match"
    assert pair.ended() == "Match"
    assert pair.starts() == 1
    psutil.wait_procs([told], timeout=30)
    eventually(lambda: True if pair.system.worker("gpu").pid != told.pid else None)


def test_a_worker_that_is_interrupted_in_the_middle_of_a_comparison_hands_it_back(pair: Pair) -> None:
    """Without the handing back, the sweep takes the run for lost, half a minute later."""
    pair.trigger()
    pair.until(True, "computing")
    told = pair.system.worker("gpu")
    os.kill(told.pid, signal.SIGINT)
    assert not pair.stored(), "It was told too late: the row is there."
    assert pair.decided() == "match"
    assert pair.ended() == "Match"
    assert pair.starts() <= 2
    assert not [line for line in trail(pair.system.database, pair.session_id) if line.event == "run_started_again"]
    psutil.wait_procs([told], timeout=30)
    assert not told.is_running() or told.status() == psutil.STATUS_ZOMBIE
    eventually(lambda: True if pair.system.worker("gpu").pid != told.pid else None)
