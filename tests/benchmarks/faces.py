"""`make bench-faces`: the engine against `DeepFace.verify` in a loop, on the same files with the same model, both warm.

The loop is what a user writes first (`naive.py`). Each side runs in a process of its own, so that its
peak memory is its own; they take turns, and medians are shown.
"""

import json
import os
import platform
import resource
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from fractions import Fraction
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import av
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from PIL import Image
from rich.console import Console
from rich.table import Table

from deployments.demo_media import build_demo_media, samples
from tasks.settings import Settings
from tests.benchmarks.naive import FRAMES, deepface_loop

REPEATS = 5
VIDEOS = {
    "640x360": (640, 360, 30),
    "1920x1080": (1920, 1080, 30),
    "3840x2160": (3840, 2160, 30),
    "1920x1080, one key frame": (1920, 1080, 1000),
}
"""Width, height, frames between key frames. Phones and browsers write one about each second."""


def main() -> None:
    """Build the media, run both sides, print the table, write it as JSON."""
    settings = Settings()
    folder = settings.state_dir.absolute() / "bench"
    cards, videos = _media(folder / "media", settings)
    rows = []
    with _Side(_engine) as engine, _Side(deepface_loop) as deepface:
        for side in (engine, deepface):
            side.run(cards["1280x900"], videos["640x360"])  # warm
        for card_name, card in cards.items():
            for video_name, video in videos.items():
                ours, theirs = [], []
                for _ in range(REPEATS):
                    ours.append(engine.run(card, video))
                    theirs.append(deepface.run(card, video))
                rows.append(_row(card_name, video_name, ours, theirs))
                Console(stderr=True).print(f"{card_name}, {video_name}: {rows[-1]['ratio']:.1f}")
        threads = engine.threads(cards["1280x900"], videos["640x360"])
    answer = {
        "date": time.strftime("%Y-%m-%d"),
        "machine": f"{processor()}, {os.cpu_count()} cores, {platform.system()}, Python {platform.python_version()}",
        "frames": FRAMES,
        "repeats": REPEATS,
        "comparisons": rows,
        "comparisons_per_second_by_threads": threads,
    }
    (folder / "faces.json").write_text(json.dumps(answer, indent=2) + "\n")
    _show(answer)


def _row(card: str, video: str, ours: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> dict[str, Any]:
    def median(runs: list[dict[str, Any]], name: str) -> float:
        return statistics.median(float(run["seconds"].get(name, 0.0)) for run in runs)

    stages: dict[str, float] = {name: median(ours, name) for name in ("decode", "detect", "align", "embed", "motion")}
    return {
        "card": card,
        "video": video,
        "engine_seconds": median(ours, "total"),
        "engine_stages": stages,
        "engine_similarity": ours[0]["similarity"],
        "engine_peak_mib": max(run["peak_mib"] for run in ours),
        "deepface_seconds": median(theirs, "total"),
        "deepface_decode_seconds": median(theirs, "decode"),
        "deepface_similarity": theirs[0]["similarity"],
        "deepface_peak_mib": max(run["peak_mib"] for run in theirs),
        "ratio": median(theirs, "total") / median(ours, "total"),
        "ratio_without_decoding_theirs": (median(theirs, "total") - median(theirs, "decode")) / median(ours, "total"),
    }


def _show(answer: dict[str, Any]) -> None:
    out = Console(width=150)
    out.print(f"{answer['machine']}, {answer['date']}. Milliseconds, medians of {answer['repeats']}; MiB at the peak.")
    table = Table(
        *("Card", "Video, 10 s", "Engine", "decode", "detect", "align", "embed", "motion", "MiB"),
        *("DeepFace loop", "of it decode", "MiB", "Ratio"),
        box=None,
    )
    for column in table.columns[2:]:
        column.justify = "right"
    for row in answer["comparisons"]:
        stages = [f"{1000 * seconds:.0f}" for seconds in row["engine_stages"].values()]
        table.add_row(
            *(row["card"], row["video"], f"{1000 * row['engine_seconds']:.0f}", *stages),
            f"{row['engine_peak_mib']:.0f}",
            f"{1000 * row['deepface_seconds']:.0f}",
            f"{1000 * row['deepface_decode_seconds']:.0f}",
            *(f"{row['deepface_peak_mib']:.0f}", f"{row['ratio']:.1f}"),
        )
    out.print(table)
    rates = answer["comparisons_per_second_by_threads"].items()
    out.print(f"Comparisons a second by threads: {', '.join(f'{count}: {rate:.1f}' for count, rate in rates)}")


class _Side:
    """One of the two, in a process of its own."""

    def __init__(self, load: "Callable[[], Callable[[Path, Path], dict[str, Any]]]") -> None:
        context = get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, load), daemon=True)
        self._process.start()

    def __enter__(self) -> "_Side":
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(BrokenPipeError):  # it may have failed, and said so
            self._pipe.send(None)
        self._process.join()

    def run(self, card: Path, video: Path) -> dict[str, Any]:
        self._pipe.send((card, video, 0))
        answer: dict[str, Any] = self._pipe.recv()
        return answer

    def threads(self, card: Path, video: Path) -> dict[str, float]:
        self._pipe.send((card, video, 8))
        answer: dict[str, float] = self._pipe.recv()
        return answer


def _serve(pipe: Connection, load: "Callable[[], Callable[[Path, Path], dict[str, Any]]]") -> None:
    compare = load()
    while (job := pipe.recv()) is not None:
        card, video, most = job
        if most:
            pipe.send({str(count): _rate(compare, card, video, count) for count in (1, 2, 4, most)})
            continue
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")  # Linux: forget the peak so far
        begin = time.perf_counter()
        answer = compare(card, video)
        answer["seconds"]["total"] = time.perf_counter() - begin
        pipe.send({**answer, "peak_mib": _peak_mib()})


def _rate(compare: "Callable[[Path, Path], dict[str, Any]]", card: Path, video: Path, count: int) -> float:
    begin, jobs = time.perf_counter(), 32
    with ThreadPoolExecutor(count) as pool:
        list(pool.map(lambda _: compare(card, video), range(jobs)))
    return jobs / (time.perf_counter() - begin)


def _engine() -> "Callable[[Path, Path], dict[str, Any]]":
    from tasks.faces.engine import load_engine
    from tasks.faces.models import engine_config

    settings = Settings(frames=FRAMES)
    engine = load_engine(engine_config(settings), settings)

    def compare(card: Path, video: Path) -> dict[str, Any]:
        found = engine.compare(card, video, settings).comparison
        return {"similarity": found.similarity, "seconds": dict(found.seconds)}

    return compare


def _peak_mib() -> float:
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return float(line.split()[1]) / 1024
    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) / 1024


def processor() -> str:
    """This machine's."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":")[1].strip()
    return platform.machine()


def _media(folder: Path, settings: Settings) -> tuple[dict[str, Path], dict[str, Path]]:
    """The demo's card as it is and at 12 megapixels, and ten seconds of the real recording, played to and fro."""
    folder.mkdir(parents=True, exist_ok=True)
    card = build_demo_media(folder, settings).genuine_card
    scan = folder / "card_12mp.jpg"
    if not scan.exists():
        with Image.open(card) as image:
            image.resize((4128, 2903), Image.Resampling.LANCZOS).save(scan, quality=92)
    videos = {}
    for name, (width, height, interval) in VIDEOS.items():
        videos[name] = folder / f"{width}x{height}-{interval}.mp4"
        if not videos[name].exists():
            _encode(samples(settings)[0], videos[name], width, height, interval)
    return {"1280x900": card, "12 megapixels": scan}, videos


def _encode(recording: Path, path: Path, width: int, height: int, interval: int) -> None:
    with av.open(str(recording)) as source:
        frames = list(source.decode(video=0))
    partial = path.with_suffix(".part.mp4")
    options = {"preset": "veryfast", "crf": "23", "g": str(interval), "keyint_min": str(interval)}
    with av.open(str(partial), "w") as container:
        stream = container.add_stream("libx264", rate=30, options=options)
        assert isinstance(stream, VideoStream)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for index in range(300):
            turn = index % (2 * len(frames) - 2)
            picture = frames[min(turn, 2 * len(frames) - 2 - turn)]
            shown: VideoFrame = picture.reformat(width, height, format="yuv420p", interpolation="BICUBIC")
            shown.pts, shown.time_base = index, Fraction(1, 30)
            container.mux(stream.encode(shown))
        container.mux(stream.encode())
    partial.rename(path)


if __name__ == "__main__":
    main()
