"""Which attempts have a file in storage that counts and is not recorded: one listing for many."""

import re
from collections.abc import Collection
from pathlib import PurePosixPath

from tasks.contracts import Attempt, FileKind
from tasks.database import database_for
from tasks.database.attempts import registered
from tasks.settings import Settings
from tasks.storage import StoredObject, open_storage

OWNER = re.compile(r"sessions/([^/]+)/([0-9]+)/(id_image|selfie_video)/.")

Name = tuple[str, int]
"""Session and number of an attempt."""


def arrivals(settings: Settings, attempts: Collection[Attempt]) -> dict[Name, str]:
    """Of these attempts, those that have such a file, and what the look was at: the newest keys of both kinds.

    Of each kind the file with the greatest name counts, if its size is accepted, as in `tasks/files.py`. An attempt
    whose recorded file is gone counts, too: its flow run says so, where an expiry would hide it.

    Raises:
        StorageUnavailable, DatabaseUnavailable, ConfigurationError.
    """
    wanted = {(one.session_id, one.attempt): one for one in attempts}
    newest: dict[tuple[Name, FileKind], StoredObject] = {}
    gone = {file.storage_key: name for name, one in wanted.items() for file in one.files.there()}
    prefixes = [f"sessions/{session_id}/{attempt}/" for session_id, attempt in wanted]
    for stored in open_storage(settings).listing_of(prefixes) if prefixes else ():
        match = OWNER.match(stored.key)
        if match is None or (name := (match[1], int(match[2]))) not in wanted:
            continue
        gone.pop(stored.key, None)
        place = name, FileKind(match[3])
        if place not in newest or newest[place].key < stored.key:
            newest[place] = stored
    known = registered(database_for(settings), {stored.key for stored in newest.values()})
    new = {
        name
        for (name, kind), stored in newest.items()
        if stored.key not in known and 0 < stored.size_bytes <= settings.max_bytes(kind)
    }
    return {name: _names(name, newest) for name in new | set(gone.values())}


def _names(name: Name, newest: dict[tuple[Name, FileKind], StoredObject]) -> str:
    return " ".join(PurePosixPath(newest[name, kind].key).name for kind in FileKind if (name, kind) in newest)
