"""What is measured of one contender."""

import asyncio
import random
import statistics
import struct
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import psutil

from tests.benchmarks.orchestration.contenders import Contender
from tests.benchmarks.orchestration.work import KINDS

CLIENTS = 8
"""Sessions whose files are uploaded at the same time."""
IDLE_SECONDS = 2.0
"""From a session's first file to its second, and to the next session, where one at a time is measured."""
WATCH_SECONDS = 30
LOOK_SECONDS = 0.02
PAUSE_SECONDS = 5
"""After the worker was killed."""
LOST_SECONDS = 300
"""A session without a decision by then is counted as lost."""
TIMEOUT_SECONDS = 900


@dataclass(frozen=True)
class Media:
    """One card, and the video of a new person each time: no two sessions have the same bytes."""

    card: Path
    video: Path
    folder: Path

    def pair(self) -> tuple[Path, Path]:
        """The card and a new video. What is added to it is a box of ISO/IEC 14496-12 that every reader passes over."""
        path = self.folder / f"{uuid.uuid4().hex}.mp4"
        path.write_bytes(self.video.read_bytes() + struct.pack(">I4s", 24, b"free") + uuid.uuid4().bytes)
        return self.card, path


@dataclass(frozen=True)
class Throughput:
    """Of sessions whose files all come at once."""

    sessions: int
    sessions_per_second: float
    """From the first upload to the last decision."""
    cpu_seconds: dict[str, float]
    """A session, by part."""


@dataclass(frozen=True)
class Waiting:
    """Sessions whose video does not come."""

    sessions: int
    mib_before: dict[str, float]
    mib: dict[str, float]
    cpu_seconds: dict[str, float]
    """In WATCH_SECONDS, by part."""


@dataclass(frozen=True)
class Fault:
    """Sessions whose comparisons take two seconds, while the worker that compares is killed."""

    sessions: int
    kills: int
    computations: int
    decisions: int
    lost: int
    seconds: float
    """From the first upload to the last decision."""


async def throughput(contender: Contender, media: Media, count: int) -> Throughput:
    """Upload everything, wait for every decision."""
    prefix = _prefix()
    pairs = [media.pair() for _ in range(count)]
    spent, began = contender.cpu(), time.monotonic()
    uploading = asyncio.create_task(_upload_all(contender, prefix, pairs))
    await _decided(contender, prefix, count, TIMEOUT_SECONDS)
    seconds = time.monotonic() - began
    await uploading
    await asyncio.sleep(1)  # what is done after the decision is a session's, too
    cpu = {part: (after - spent[part]) / count for part, after in contender.cpu().items()}
    return Throughput(count, count / seconds, cpu)


async def latency(contender: Contender, media: Media) -> float:
    """Seconds from the second upload to the stored decision of a session that is alone."""
    prefix, (card, video) = _prefix(), media.pair()
    await contender.upload(f"{prefix}0", KINDS[0], card)
    await asyncio.sleep(IDLE_SECONDS)
    began = time.monotonic()
    await contender.upload(f"{prefix}0", KINDS[1], video)
    await _decided(contender, prefix, 1, TIMEOUT_SECONDS)
    seconds = time.monotonic() - began
    await asyncio.sleep(IDLE_SECONDS)
    return seconds


async def waiting(contender: Contender, media: Media, count: int) -> Waiting:
    """Memory before and after, and what waiting costs."""
    before, prefix, places = contender.mib(), _prefix(), asyncio.Semaphore(CLIENTS)

    async def upload(number: int) -> None:
        async with places:
            await contender.upload(f"{prefix}{number}", KINDS[0], media.card)

    await asyncio.gather(*(upload(number) for number in range(count)))
    await asyncio.sleep(WATCH_SECONDS / 2)
    spent = contender.cpu()
    await asyncio.sleep(WATCH_SECONDS)
    cpu = {part: after - spent[part] for part, after in contender.cpu().items()}
    return Waiting(count, before, contender.mib(), cpu)


async def fault(contender: Contender, media: Media, count: int, kills: int) -> Fault:
    """Kill what compares in the middle of a comparison, again and again."""
    prefix = _prefix()
    began = time.monotonic()
    async with asyncio.TaskGroup() as group:
        group.create_task(_upload_all(contender, prefix, [media.pair() for _ in range(count)]))
        group.create_task(_kill(contender, prefix, kills))
    decided = await _decided(contender, prefix, count, LOST_SECONDS, strict=False)
    seconds = time.monotonic() - began
    return Fault(count, kills, contender.computations(prefix), contender.decisions(prefix), count - decided, seconds)


async def _kill(contender: Contender, prefix: str, kills: int) -> None:
    chance = random.Random(1)
    for _ in range(kills):
        begun = contender.computations(prefix)
        with suppress(TimeoutError):
            await _until(partial(_began, contender, prefix, begun), LOST_SECONDS, LOOK_SECONDS)
        await asyncio.sleep(chance.uniform(0.5, 1.5))
        await asyncio.to_thread(contender.kill)
        await asyncio.sleep(PAUSE_SECONDS)


def _began(contender: Contender, prefix: str, before: int) -> bool:
    return contender.computations(prefix) > before


async def _upload_all(contender: Contender, prefix: str, pairs: list[tuple[Path, Path]]) -> None:
    places = asyncio.Semaphore(CLIENTS)

    async def upload(number: int, pair: tuple[Path, Path]) -> None:
        async with places:
            for kind, path in zip(KINDS, pair, strict=True):
                await contender.upload(f"{prefix}{number}", kind, path)

    await asyncio.gather(*(upload(number, pair) for number, pair in enumerate(pairs)))


async def _decided(contender: Contender, prefix: str, count: int, seconds: float, *, strict: bool = True) -> int:
    step = LOOK_SECONDS if count > 1 else LOOK_SECONDS / 2
    try:
        await _until(lambda: contender.decided(prefix) == count, seconds, step)
    except TimeoutError as exc:
        if strict:
            left = count - contender.decided(prefix)
            raise TimeoutError(f"{left} of {count} sessions have no decision after {seconds:.0f} s.") from exc
    return contender.decided(prefix)


async def _until(there: Callable[[], bool], seconds: float, step: float) -> None:
    async with asyncio.timeout(seconds):
        while not there():  # noqa: ASYNC110 - it is a database that is asked
            await asyncio.sleep(step)


def _prefix() -> str:
    return f"s{uuid.uuid4().hex[:8]}-"


def median(rounds: list[Throughput]) -> Throughput:
    """Of each figure by itself."""
    parts = rounds[0].cpu_seconds
    return Throughput(
        rounds[0].sessions,
        statistics.median(one.sessions_per_second for one in rounds),
        {part: statistics.median(one.cpu_seconds[part] for one in rounds) for part in parts},
    )


def memory_total() -> float:
    """Of this machine, GiB."""
    return float(psutil.virtual_memory().total) / 2**30
