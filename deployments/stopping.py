"""Ends processes that this one has started, with all that they have started themselves."""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterable

import psutil

STOP_SECONDS = 10
KILLED_SECONDS = 5
"""What the system has to end a killed process."""


def stop_tree(process: subprocess.Popen[bytes]) -> None:
    """Ask a process to end, give it STOP_SECONDS, then kill it and all it has started."""
    stop_trees([process], STOP_SECONDS)


def stop_trees(processes: Iterable[subprocess.Popen[bytes]], seconds: float) -> list[subprocess.Popen[bytes]]:
    """Ask processes to end, all at once; after so many seconds kill those that are left, and all they have started.

    Each leads a session of its own. Returns those that did not end when they were asked.
    """
    asked = list(processes)
    started = [child for process in asked for child in _children(process)]
    for process in asked:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGINT)
    end = time.monotonic() + seconds
    for process in asked:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(max(end - time.monotonic(), 0))
    late = [process for process in asked if process.poll() is None]
    for child in started:
        with contextlib.suppress(psutil.NoSuchProcess):
            child.kill()
    for process in asked:
        # The group goes last: it holds whatever was started after the list was made.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    psutil.wait_procs(started, timeout=KILLED_SECONDS)
    return late


def _children(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    try:
        return psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []
