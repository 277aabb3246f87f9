"""`kycflow compare`: the engine alone, on two files, without a server, a database or a storage."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from tasks.errors import ConfigurationError

if TYPE_CHECKING:
    from tasks.contracts import FaceComparison, Thresholds, Verdict

_COLOURS = {"match": "green", "review": "yellow"}


def compare(
    id_image: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="Picture of the ID card.")],
    selfie_video: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="Selfie video.")],
    report: Annotated[
        Path | None, typer.Option("--report", dir_okay=False, help="Write the reviewers' picture to this JPEG file.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")] = False,
) -> None:
    """Compare an ID image with a selfie video here and now: no server, nothing stored.

    Exit code 0 for match, 1 for any other answer, 2 for an error, 3 when no thresholds are set for the models.
    """
    from tasks.contracts import DecisionKind
    from tasks.faces.engine import load_engine
    from tasks.faces.models import engine_config, measured
    from tasks.faces.picture import report as draw
    from tasks.judgement import bounds_for, judge, thresholds_for
    from tasks.settings import Settings

    settings = Settings()
    with Console(stderr=True).status("Comparing"):
        compared = load_engine(engine_config(settings), settings).compare(id_image, selfie_video, settings)
    thresholds, verdict = None, None
    try:
        thresholds = thresholds_for(settings)
        verdict = judge(compared.comparison, thresholds, bounds_for(settings))
    except ConfigurationError as exc:
        Console(stderr=True).print(f"[yellow]no decision:[/] {escape(str(exc))}", soft_wrap=True)
    if report is not None:
        known = measured(settings.recogniser, settings.detector)
        report.write_bytes(draw(compared, thresholds, known, verdict=verdict))
    if as_json:
        answer = {
            "decision": verdict.decision if verdict else None,
            "reason": verdict.reason if verdict else None,
            "detail": verdict.detail if verdict else None,
            "thresholds": thresholds.model_dump() if thresholds else None,
            "comparison": compared.comparison.model_dump(mode="json"),
        }
        typer.echo(json.dumps(answer, indent=2))
    else:
        _show(compared.comparison, thresholds, verdict)
    if verdict is None:
        raise typer.Exit(3)
    raise typer.Exit(0 if verdict.decision is DecisionKind.MATCH else 1)


def _show(found: "FaceComparison", thresholds: "Thresholds | None", verdict: "Verdict | None") -> None:
    from tasks.faces.quality import figures

    out = Console()
    summary = Table.grid(padding=(0, 2))
    if verdict is not None:
        summary.add_row("decision", f"[bold {_COLOURS.get(verdict.decision, 'red')}]{verdict.decision}[/]")
        summary.add_row("reason", verdict.reason)
    detail = verdict.detail if verdict else found.detail
    if detail:
        summary.add_row("", escape(detail))
    if found.similarity is not None:
        bounds = f"  (match from {thresholds.match:g}, review from {thresholds.review:g})" if thresholds else ""
        summary.add_row("similarity", f"{found.similarity:.3f}{bounds}")
    if found.spread is not None:
        summary.add_row("spread", f"{found.spread:.3f}, smallest similarity between two frames")
    if found.motion is not None:
        summary.add_row("motion", f"{found.motion:.3f}")
    if found.similarity is not None:
        real = "off" if found.anti_spoofing is None else f"takes {found.anti_spoofing:.0%} of the frames for real"
        summary.add_row("anti-spoofing", real)
    stages = ", ".join(f"{name} {seconds:.2f}" for name, seconds in found.seconds.items() if name != "total")
    summary.add_row("time", f"{found.seconds.get('total', 0):.2f} s on {found.device} ({stages})")
    out.print(summary, highlight=False)

    columns = ("", "Score", "Weight", "Eyes", "Sharp", "Bright", "Contrast", "Yaw", "Pitch", "Conf.")
    faces = Table(*columns, box=None, pad_edge=False)
    if found.reference is not None:
        faces.add_row("ID image", "", "", *figures(found.reference))
    for frame in found.frames:
        faces.add_row(
            f"{frame.time_seconds:.2f} s", f"{frame.similarity:.3f}", f"{frame.weight:.0%}", *figures(frame.quality)
        )
    if faces.row_count:
        out.print()
        out.print(faces, highlight=False)
