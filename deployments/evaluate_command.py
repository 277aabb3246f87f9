"""`kycflow evaluate`: how well the engine tells people apart, measured on your own pairs of pictures."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from rich.progress import TaskID

    from tasks.evaluation.results import Evaluation
    from tasks.settings import Settings


def evaluate(
    pairs_csv: Annotated[
        Path, typer.Argument(dir_okay=False, help="CSV file with the columns reference, probe, same_person (1 or 0).")
    ],
    images: Annotated[Path, typer.Option("--images", file_okay=False, help="Folder that holds the pictures.")],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", file_okay=False, help="Folder for the report. Default: evaluations/ in the state folder."
        ),
    ] = None,
    fmr: Annotated[float, typer.Option("--fmr", help="False match rate to suggest a threshold for.")] = 0.001,
    beside_deepface: Annotated[
        bool, typer.Option("--beside-deepface", help="Run DeepFace.verify's own pipeline on the same pairs, too.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")] = False,
) -> None:
    """Measure error rates on labelled pairs of pictures: FMR, FNMR, EER, AUC, charts, and a suggested threshold.

    Stopped and started again, it goes on where it was: each picture is embedded once.
    """
    from tasks.settings import Settings

    settings = Settings()
    folder = out or settings.state_dir.absolute() / "evaluations" / pairs_csv.stem
    err = Console(stderr=True)
    try:
        evaluation = _run(err, pairs_csv, images, folder, settings, fmr, beside_deepface)
    except KeyboardInterrupt:
        err.print("Stopped. What was embedded is kept: the same command goes on from there.")
        raise typer.Exit(130) from None
    if as_json:
        typer.echo(json.dumps({"out": str(folder), **evaluation.model_dump(mode="json")}, indent=2))
    else:
        # A file or a pipe has no width of its own: there, nothing needs to be folded.
        _show(Console() if sys.stdout.isatty() else Console(width=140), evaluation, folder)


def _run(
    err: Console, pairs_csv: Path, images: Path, folder: Path, settings: "Settings", fmr: float, baseline: bool
) -> "Evaluation":
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from tasks.evaluation.run import evaluate_files

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=err, transient=True) as bars:
        started: dict[str, TaskID] = {}

        def progress(name: str, done: int, of: int) -> None:
            if name not in started:
                started[name] = bars.add_task(f"{name}: pictures", total=of)
            bars.update(started[name], completed=done)

        return evaluate_files(pairs_csv, images, folder, settings, fmr=fmr, baseline=baseline, progress=progress)


def _show(out: Console, evaluation: "Evaluation", folder: Path) -> None:
    from tasks.evaluation.report import pipelines, remarks, rows
    from tasks.evaluation.run import REPORT_FILES

    engine = evaluation.engine
    out.print(
        f"{evaluation.pairs} pairs of {evaluation.pictures} pictures, {engine.recogniser} with {engine.detector} on "
        f"{evaluation.device}, {evaluation.seconds:.1f} s",
        highlight=False,
    )
    table = Table("", *(each.name for each in pipelines(evaluation)), box=None, pad_edge=False)
    for row in rows(evaluation):
        table.add_row(escape(row.what), *row.cells)
    out.print(table, highlight=False)
    for remark in remarks(evaluation):
        out.print(f"- {remark}", highlight=False)
    out.print(f"Report: {folder}", highlight=False, soft_wrap=True)
    out.print("  " + ", ".join(REPORT_FILES), highlight=False)
    out.print("The folder holds embeddings and faces: delete it when you are done.", highlight=False)
