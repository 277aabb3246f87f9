"""`make chaos`: many sessions while everything that can die is killed. Exit code 1 if anything is lost or doubled."""

import json
import random
import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from deployments.demo_card import draw_card
from deployments.demo_media import build_demo_media, portraits
from tasks.settings import Settings
from tests.chaos.clients import Clients
from tests.chaos.faults import Faults
from tests.chaos.plan import Away, Card, Plan, PlannedSession, draw
from tests.chaos.verdict import judge, table, wait_for_decisions
from tests.chaos.world import world

MOMENT_SECONDS = 120
STORAGE_SECONDS = 10
KILL_SECONDS = 25
"""So that there are sessions until the last kill, which rests after the one before and waits for its moment."""
OUTAGE_REST_SECONDS = 70
"""What process workers need on two cores to be done with the sessions that came in an outage."""


def main(
    sessions: Annotated[int, typer.Option(help="How many sessions.")] = 60,
    kills: Annotated[int, typer.Option(help="How many workers are killed.")] = 16,
    server_kills: Annotated[int, typer.Option(help="How often Prefect's server is killed.")] = 2,
    seed: Annotated[int | None, typer.Option(help="Draws the same sessions and faults again.")] = None,
    outages: Annotated[
        str,
        typer.Option(help="Seconds, with commas: for so long each, Prefect, database and storage are away by turns."),
    ] = "",
    away: Annotated[list[Away], typer.Option(help="Only these are away.", show_default=False)] = [*Away],  # noqa: B006
    spread_seconds: Annotated[
        float | None, typer.Option(help="Sessions begin within that time: 25 s a kill, the outages, 70 s after each.")
    ] = None,
    decide_seconds: Annotated[float, typer.Option(help="Time for the last decisions, after the last fault.")] = 1200,
    embedded: Annotated[bool, typer.Option("--sqlite", help="SQLite for both databases.")] = False,
    worker_type: Annotated[str, typer.Option(help="Type of both work pools: resident or process.")] = "resident",
) -> None:
    """Break everything, and see that every session gets its one decision."""
    console = Console(highlight=False)
    seed = secrets.randbelow(10**6) if seed is None else seed
    own = Settings()
    lengths = [float(seconds) for seconds in outages.split(",") if seconds]
    outage = len(away) * (sum(lengths) + OUTAGE_REST_SECONDS * len(lengths))
    spread = KILL_SECONDS * kills + outage if spread_seconds is None else spread_seconds
    plan = draw(seed, sessions, kills, spread)
    folder = own.state_dir.absolute() / "chaos" / f"{time.strftime('%Y%m%d-%H%M%S')}-{seed}"
    folder.mkdir(parents=True)
    console.print(f"seed {seed}: {sessions} sessions, {kills} kills of workers; logs in {folder}/state/logs")
    media = _media(folder, own, plan)
    began = time.monotonic()
    with world(folder / "state", own.weights_dir, embedded=embedded, worker_type=worker_type) as made:
        console.print(f"everything runs after {time.monotonic() - began:.0f} s")
        clients, faults = Clients(made, media, max(lengths, default=0)), Faults(made, console)
        uploading = threading.Thread(target=clients.run, args=(plan.sessions, time.monotonic()), daemon=True)
        uploading.start()
        _bring(faults, plan, server_kills, [(what, seconds) for seconds in lengths for what in away], seed)
        uploading.join()
        with console.status("waiting for the last decisions") as status:
            wait_for_decisions(made, plan, decide_seconds, lambda n: status.update(f"{n} of {sessions} decided"))
        faults.over.set()
        checks = judge(made, plan, clients, faults)
    console.print(table(checks, faults))
    for line in made.trouble:
        console.print(line, markup=False)
    took = time.monotonic() - began
    where = f"{'SQLite' if embedded else 'PostgreSQL'}, {worker_type} workers"
    console.print(f"seed {seed}, {where}, {took:.0f} s in all")
    found = {"seed": seed, "seconds": took, "checks": [asdict(check) for check in checks]}
    (folder / "result.json").write_text(json.dumps(found, default=str, indent=2))
    raise typer.Exit(0 if all(check.right for check in checks) else 1)


def _bring(faults: Faults, plan: Plan, server_kills: int, outages: list[tuple[Away, float]], seed: int) -> None:
    """Kill workers one after the other; the other faults come in between, the same for the same seed."""
    chance = random.Random(seed + 1)
    between: list[Callable[[], None]] = [faults.kill_server] * server_kills + [faults.restart_database]
    between += [partial(faults.away, what, seconds) for what, seconds in [(Away.STORAGE, STORAGE_SECONDS), *outages]]
    chance.shuffle(between)
    step = max(1, len(plan.kills) // (len(between) + 1))
    missed = []
    for number, moment in enumerate(plan.kills, 1):
        if not faults.kill_worker(moment, MOMENT_SECONDS):
            missed.append(moment)
        if number % step == 0 and between:
            between.pop()()
        time.sleep(chance.uniform(2, 8))
    for moment in missed:  # some may come up again while the last sessions run
        faults.kill_worker(moment, MOMENT_SECONDS / 4)
    for fault in between:
        fault()


def _media(folder: Path, settings: Settings, plan: Plan) -> "_Media":
    drawn = build_demo_media(folder / "media", settings)
    genuine, other = portraits(settings)
    faces = {Card.GENUINE: genuine, Card.IMPOSTOR: other, Card.FACELESS: None}
    cards = {(one.card, one.serial) for one in plan.sessions}
    files = {}
    for card, serial in sorted(cards):
        path = folder / "media" / f"{card.value}-{serial}.jpg"
        path.write_bytes(draw_card(faces[card], serial=10_000 + serial))
        files[card, serial] = path
    return _Media(files, drawn.selfie_video)


class _Media:
    def __init__(self, cards: dict[tuple[Card, int], Path], video: Path) -> None:
        self._cards, self._video = cards, video

    def __call__(self, session: PlannedSession) -> dict[str, Path]:
        return {"id_image": self._cards[session.card, session.serial], "selfie_video": self._video}


if __name__ == "__main__":
    typer.run(main)
