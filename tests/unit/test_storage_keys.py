"""Names in the object store."""

import re

import pytest

from tasks.contracts import FileKind
from tasks.storage.keys import file_prefix, new_file_key, picture_key, valid_key


def test_names_sort_by_time_of_upload(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = []
    for milliseconds in (5, 1_700_000_000_000, 1_700_000_000_001):
        monkeypatch.setattr("time.time_ns", lambda now=milliseconds: now * 1_000_000)
        keys.append(new_file_key("a", 1, FileKind.ID_IMAGE))
    assert keys == sorted(keys)
    assert re.fullmatch(r"sessions/a/1/id_image/\d{13}-[0-9a-f]{8}", keys[0])


def test_keys_made_in_the_same_millisecond_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.time_ns", lambda: 10**18)
    assert len({new_file_key("a", 1, FileKind.SELFIE_VIDEO) for _ in range(50)}) == 50


def test_a_prefix_ends_where_another_attempt_begins() -> None:
    assert not file_prefix("a", 11, FileKind.ID_IMAGE).startswith(file_prefix("a", 1, FileKind.ID_IMAGE))
    assert valid_key(picture_key("f" * 64)) == f"comparisons/{'f' * 64}/faces.jpg"


@pytest.mark.parametrize(
    "key", ["", "/etc/passwd", "a/../b", "..", "a//b", "a/", "a/./b", "a\\b", "a\0b", ".incoming/x", "x" * 513]
)
def test_keys_that_could_leave_the_store_are_refused(key: str) -> None:
    with pytest.raises(ValueError, match="no storage key"):
        valid_key(key)
