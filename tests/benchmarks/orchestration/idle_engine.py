"""`python -m tests.benchmarks.orchestration.idle_engine MODULE ...`: MODULE with an engine that only takes its time.

A comparison that costs nothing shows what orchestration costs. Everything else is the product.
"""

import os
import runpy
import sys
from pathlib import Path

from tasks.contracts import EngineConfig, FaceComparison
from tasks.faces import engine
from tasks.faces.shown import ComparedFaces
from tasks.settings import Settings
from tests.benchmarks.orchestration.work import COMPARISON, Kind, idle


class IdleEngine:
    """In place of `FaceEngine`."""

    def compare(self, reference: Path, probe: Path, settings: Settings) -> ComparedFaces:
        """Every pair matches."""
        del reference, probe, settings
        return ComparedFaces(FaceComparison(similarity=idle(Kind(os.environ[COMPARISON]))))


def load_idle_engine(config: EngineConfig, settings: Settings) -> IdleEngine:
    """In place of `load_engine`."""
    del config, settings
    return IdleEngine()


if __name__ == "__main__":
    engine.load_engine = load_idle_engine  # type: ignore[assignment]
    sys.argv = sys.argv[1:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
