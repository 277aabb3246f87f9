"""The short form of `make chaos`: real processes, really killed."""

import subprocess
import sys
from pathlib import Path

SECONDS = 900


def test_nothing_is_lost_and_nothing_computed_twice_while_everything_dies(weights: list[Path]) -> None:
    """Five workers of both pools, Prefect's server, PostgreSQL and storage, while twelve sessions run."""
    del weights  # are in place
    short = ("--sessions=12", "--kills=5", "--server-kills=1", "--spread-seconds=90", "--seed=4")
    done = subprocess.run(
        [sys.executable, "-m", "tests.chaos", *short], capture_output=True, text=True, timeout=SECONDS, check=False
    )
    print(done.stdout)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
