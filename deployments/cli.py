"""The command `kycflow`.

Only what is needed to read the arguments is imported here; each command imports what it does its work with.
"""

import contextlib
import functools
import json
import signal
import sys
import time
import uuid
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from deployments.compare_command import compare
from deployments.evaluate_command import evaluate
from deployments.session_commands import api_url, audit, delete, resume, show_session, status, sweep
from tasks.errors import KycflowError, Refused

if TYPE_CHECKING:
    from tasks.settings import Settings

app = typer.Typer(
    help="Checks that the person in a selfie video is the person on an ID card.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
models_app = typer.Typer(help="Weights of the face models.", no_args_is_help=True)
db_app = typer.Typer(help="The SQL database.", no_args_is_help=True)
app.add_typer(models_app, name="models")
app.add_typer(db_app, name="db")
app.command()(compare)
app.command()(evaluate)
for command in (status, audit, resume, delete, sweep):
    app.command()(command)

out = Console()
err = Console(stderr=True)

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]


def main() -> None:
    """Run the command. Exit code 2 for every error; those made on purpose are one clear line."""
    # A shell starts what it runs in the background with SIGINT ignored, and Python leaves that as it is.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # by nohup
        signal.signal(signal.SIGHUP, lambda *_: sys.exit(129))
    try:
        app()
    except Refused as exc:
        _fail(f"{exc.code}: {exc}")
    except KycflowError as exc:
        _fail(str(exc))
    except Exception as exc:
        from pydantic import ValidationError

        if isinstance(exc, ValidationError):
            wrong = [f"KYCFLOW_{str(e['loc'][0]).upper()}: {e['msg']}" for e in exc.errors() if e["loc"]]
            _fail("\n".join(wrong) or str(exc))
        err.print_exception()
        sys.exit(2)


def _fail(message: str) -> NoReturn:
    err.print(f"[red]error:[/] {escape(message)}", highlight=False, soft_wrap=True)
    sys.exit(2)


def _settings() -> "Settings":
    from tasks.settings import Settings

    return Settings()


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=2, default=str))  # noqa: T201


@app.command()
def up(
    prepare: Annotated[
        bool,
        typer.Option("--prepare", help="Only create Prefect's database, and stop: the first start is sooner then."),
    ] = False,
) -> None:
    """Start the whole system on this machine; Ctrl-C stops all of it."""
    from deployments.prefect_access import secret_file
    from deployments.stack import Stack, running

    settings = _settings()
    if prepare:
        if running(settings) is None:
            with err.status("Creating Prefect's database"), Stack(settings, server_only=True):
                pass
        return
    say = functools.partial(err.print, highlight=False, soft_wrap=True)
    starting = err.status("Starting Prefect, workers and the upload service")
    starting.start()
    with contextlib.suppress(KeyboardInterrupt), Stack(settings, say=say) as stack:
        starting.stop()
        asks = f"(asks once for a secret: cat {secret_file(settings)})"
        out.print(f"Prefect UI   {stack.addresses.prefect_ui}   {asks}", soft_wrap=True)
        uploads = stack.addresses.upload_api
        out.print(f"Upload API   {uploads}   (documentation: {uploads}/docs)", soft_wrap=True)
        out.print(f"Logs         {settings.state_dir / 'logs'}", soft_wrap=True)
        out.print("Ready. Ctrl-C stops everything.")
        while True:
            for name in stack.check():
                say(f"{name} ended by itself and was started again: see {settings.state_dir / 'logs' / name}.log")
            time.sleep(0.5)


@app.command()
def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on. Left out: KYCFLOW_HOST.")] = None,
    port: Annotated[int | None, typer.Option(min=1, max=65_535, help="Left out: KYCFLOW_API_PORT.")] = None,
) -> None:
    """Run the upload service until a signal ends it. It logs one JSON object a line."""
    from deployments.upload_service import server

    server.serve(host, port)


@app.command("server")
def prefect_server(
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int | None, typer.Option(min=1, max=65_535, help="Left out: KYCFLOW_PREFECT_PORT.")] = None,
    processes: Annotated[int, typer.Option(min=1, help="More than one: without services.")] = 1,
    no_services: Annotated[
        bool, typer.Option("--no-services", help="`prefect server services start` has them.")
    ] = False,
) -> None:
    """Run Prefect's server, mended where kycflow needs it, until a signal ends it."""
    from deployments import prefect_server as server

    server.serve(host, port, processes, no_services)


@app.command()
def worker(
    pool: Annotated[str, typer.Option(help="Work pool: gpu or upkeep.")],
    with_healthcheck: Annotated[
        bool, typer.Option("--with-healthcheck", help="Answer GET /health at PREFECT_WORKER_WEBSERVER_PORT.")
    ] = False,
) -> None:
    """Run Prefect's worker for a pool until a signal ends it, with a sign of life that the sweep reads."""
    from deployments.worker import work

    work(pool, with_healthcheck=with_healthcheck)


@app.command()
def demo(as_json: AsJson = False) -> None:
    """Verify six sessions through the upload API, as a client would; exit code 1 if a decision is not as expected."""
    from deployments.demo import run_demo

    raise typer.Exit(run_demo(_settings(), out, err, as_json=as_json))


@app.command()
def submit(
    id_image: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="Picture of the ID card.")],
    selfie_video: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="Selfie video.")],
    session_id: Annotated[str | None, typer.Option("--session", help="Its id; a new random one if left out.")] = None,
    wait_seconds: Annotated[float, typer.Option(min=0, help="How long to wait for the decision.")] = 600,
    as_json: AsJson = False,
) -> None:
    """Upload an ID image and a selfie video, and wait for the decision.

    Exit code 0 for match, 1 for any other decision, 2 for an error, 3 if there is no decision in time, or the session
    was cancelled or given up.
    """
    from rich.progress import BarColumn, DownloadColumn, Progress, SpinnerColumn, TextColumn

    from deployments.client import UploadClient

    settings = _settings()
    session_id = session_id or uuid.uuid4().hex
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), DownloadColumn())
    with UploadClient(api_url(settings), settings) as client, Progress(*columns, console=err, transient=True) as bars:
        client.create_session(session_id)
        for kind, path in (("id_image", id_image), ("selfie_video", selfie_video)):
            bar = bars.add_task(kind.replace("_", " "), total=path.stat().st_size)
            client.upload(session_id, kind, path, lambda sent, bar=bar: bars.advance(bar, sent))  # type: ignore[misc]
        waiting = bars.add_task("waiting for the decision", total=None)
        session = client.wait(
            session_id, wait_seconds, lambda status: bars.update(waiting, description=status.replace("_", " "))
        )
    show_session(session, as_json)
    if session["decision"] is None:
        raise typer.Exit(3)
    raise typer.Exit(0 if session["decision"] == "match" else 1)


@app.command()
def deploy() -> None:
    """Create the work pools and apply prefect.yaml at the Prefect server in PREFECT_API_URL. Safe to repeat."""
    import asyncio

    from deployments import provision
    from deployments.bring_over import bring_over

    with err.status("Deploying"):
        asyncio.run(provision.create_pools(_settings().worker_type))
        provision.deploy()
        lines = asyncio.run(bring_over())
    for line in lines:
        out.print(line, soft_wrap=True)
    out.print("Work pools and deployments are in place.")


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """Say what is missing and how to mend it; exit code 1 if anything needed is."""
    from deployments.doctor import examine

    findings = examine(_settings())
    if as_json:
        _print_json([finding.model_dump() for finding in findings])
    else:
        marks = {"ok": "[green]ok[/]", "warning": "[yellow]--[/]", "missing": "[red]no[/]"}
        wide = max(len(finding.what) for finding in findings)
        for finding in findings:
            # Not folded: what is to be typed can be copied whole from a terminal of any width.
            out.print(f"{marks[finding.state]}  {finding.what:{wide}}  {escape(finding.finding)}", soft_wrap=True)
            if finding.remedy:
                out.print(f"    {escape(finding.remedy)}", soft_wrap=True, highlight=False)
    raise typer.Exit(1 if any(finding.state == "missing" for finding in findings) else 0)


@models_app.command("list")
def models_list(as_json: AsJson = False) -> None:
    """List the models known, and which are in use."""
    from tasks.faces.models import listing

    rows = listing(_settings())
    if as_json:
        _print_json([row._asdict() for row in rows])
        return
    for kind, of_kind in groupby(rows, lambda row: row.kind):
        table = Table(
            kind.capitalize(), "Runs on", "Input", "Licence", "Sum", "Thresh.", "Used", box=None, pad_edge=False
        )
        for name, same in groupby(of_kind, lambda row: row.name):
            forms = list(same)
            size = "any" if forms[0].input_size is None else "{}x{}".format(*forms[0].input_size)
            known = "yes" if any(form.sum_known for form in forms) else ""
            used = next((form.runtime if len(forms) > 1 else "yes" for form in forms if form.in_use), "")
            runtimes = ", ".join(form.runtime for form in forms)
            table.add_row(name, runtimes, size, forms[0].licence, known, "yes" if forms[0].thresholds else "", used)
        out.print(table)
        out.print()
    out.print(
        "A model without a known sum needs its weight file's SHA-256 in KYCFLOW_WEIGHTS_SHA256 (names: --json), and "
        "one without thresholds needs KYCFLOW_MATCH_THRESHOLD and KYCFLOW_REVIEW_THRESHOLD (docs/evaluation.md)."
    )


@models_app.command("pull")
def models_pull(
    samples: Annotated[bool, typer.Option("--samples", help="Also the media that demo and tests use.")] = False,
) -> None:
    """Fetch the weights in use, check their SHA-256, and put them in place. Nothing is fetched twice."""
    from deployments.demo_media import DEMO, build_demo_media
    from deployments.demo_media import samples as sample_media
    from tasks.faces.models import pull

    settings = _settings()
    with err.status("Fetching weights"):
        paths = pull(settings)
        if samples:
            paths = [*paths, *sample_media(settings)]
            build_demo_media(settings.state_dir / DEMO, settings)
    for path in paths:
        out.print(str(path), soft_wrap=True)


@models_app.command("verify")
def models_verify(as_json: AsJson = False) -> None:
    """Check the SHA-256 of the weights in use; exit code 1 if one is missing or wrong."""
    from tasks.faces.models import verify

    states = verify(_settings())
    if as_json:
        _print_json([{"file": file.name, "state": state} for file, state in states])
    else:
        for file, state in states:
            out.print(f"{state:8} {file.name}")
    raise typer.Exit(0 if all(state == "ok" for _, state in states) else 1)


@db_app.command("upgrade")
def db_upgrade() -> None:
    """Bring the database to the schema that this version needs. Safe to repeat, and at several places at once."""
    from tasks.database.schema import upgrade

    upgrade(_settings().database)
    out.print("The database has the schema that this version needs.")


if __name__ == "__main__":
    main()
