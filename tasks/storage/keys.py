"""Names in the object store. Pure apart from clock and chance; nothing else makes a key."""

import secrets
import time

from tasks.contracts import FileKind

RESULTS = "results/"
"""What Prefect's cache keeps of finished tasks. It lies apart from what it is about, as it may be lost."""
SESSION_RESULTS = RESULTS + "sessions/{session_id}/{attempt}/"
COMPARISON_RESULTS = RESULTS + "comparisons/{key}/"


def valid_key(key: str) -> str:
    """The key itself, when it can name an object on every store.

    Raises ValueError for an empty or absolute key, for empty, `.`-leading or `..` segments, NUL and backslash.
    """
    if not is_valid_key(key):
        raise ValueError(f"{key!r} is no storage key: it must be relative, without '..', hidden or empty parts.")
    return key


def is_valid_key(key: str) -> bool:
    """Whether `valid_key` takes it. Other systems and consoles put names into a store that it does not."""
    hidden_or_empty = any(part == "" or part[0] == "." for part in key.split("/"))
    return len(key) <= 512 and "\0" not in key and "\\" not in key and not hidden_or_empty


def file_prefix(session_id: str, attempt: int, kind: FileKind) -> str:
    """What the keys of all uploads of one kind of file of an attempt begin with."""
    return f"sessions/{session_id}/{attempt}/{kind}/"


def new_file_key(session_id: str, attempt: int, kind: FileKind) -> str:
    """A new unique key; within an attempt and kind, names sort by time of upload."""
    unix_ms = time.time_ns() // 1_000_000
    return f"{file_prefix(session_id, attempt, kind)}{unix_ms:013d}-{secrets.token_hex(4)}"


def picture_key(comparison_key: str) -> str:
    """Key of a comparison's picture: the faces compared, with what was measured."""
    return f"comparisons/{comparison_key}/faces.jpg"


def evaluation_key(run_id: str, name: str) -> str:
    """Key of a file of an evaluation's report, by the flow run that made it."""
    return f"evaluations/{run_id}/{name}"
