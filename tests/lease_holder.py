"""A process that owns a comparison, begins it, and stores a result when told to: for tests that stop it meanwhile.

Run as `python -m tests.lease_holder DATABASE_URL`. It says `begun`, reads a line, and says `stored` or `LeaseLost`.
"""

import sys

from sqlalchemy import Engine

from tasks.contracts import Comparison, EngineConfig, FaceComparison, StoredFile
from tasks.database.comparisons import begin_comparison, finish_comparison
from tasks.database.engine import open_database
from tasks.database.leases import Lease
from tasks.errors import LeaseLost
from tasks.leasing import owned
from tasks.settings import Settings

LEASE_SECONDS = 1
KEY = "c" * 64
NAME = f"comparison:{KEY}"
FILE = StoredFile(storage_key="file", sha256="a" * 64, size_bytes=5)
ITS_RESULT = FaceComparison(similarity=0.1)


def begin(database: Engine, lease: Lease, by: str) -> Comparison | None:
    """Begin the comparison."""
    return begin_comparison(database, lease, KEY, FILE, FILE, EngineConfig(), by=by)


def finish(database: Engine, lease: Lease, result: FaceComparison, by: str) -> Comparison:
    """Store its result."""
    return finish_comparison(database, lease, KEY, result=result, picture_key=None, by=by)


def main(url: str) -> None:
    """Begin, wait for a line, finish."""
    database = open_database(url)
    with owned(database, NAME, "holder", Settings(lease_seconds=LEASE_SECONDS), 30) as lease:
        assert lease is not None
        begin(database, lease, "holder")
        print("begun", flush=True)
        sys.stdin.readline()
        try:
            finish(database, lease, ITS_RESULT, "holder")
            print("stored")
        except LeaseLost:
            print("LeaseLost")


if __name__ == "__main__":
    main(sys.argv[1])
