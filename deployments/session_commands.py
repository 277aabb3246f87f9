"""Commands about sessions: `kycflow status`, `audit`, `resume` and `delete` through the upload API, and `sweep`."""

import asyncio
import json
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from deployments.client import UploadClient
    from tasks.settings import Settings
    from tasks.sweep.findings import Finding

SessionIdArgument = Annotated[str, typer.Argument(metavar="SESSION_ID", help="The session's id.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]

_NEXT = {
    "error": "Why: `kycflow audit {0}`. When that is mended: `kycflow resume {0}`",
    "cancelled": "To go on with it: `kycflow resume {0}`. To remove it: `kycflow delete {0}`",
}


def status(session_id: SessionIdArgument, as_json: AsJson = False) -> None:
    """Show where a session is, and its decision."""
    with _client() as client:
        show_session(client.session(session_id), as_json)


def audit(session_id: SessionIdArgument, as_json: AsJson = False) -> None:
    """Show what happened to a session, in its order; to a deleted one, too."""
    with _client() as client:
        lines = client.audit(session_id)
    if as_json:
        _print_json(lines)
        return
    table = Table("Time (UTC)", "Attempt", "Event", "Status", "By", "Detail", box=None, pad_edge=False)
    for line in lines:
        change = " to ".join(value for value in (line["from_status"], line["to_status"]) if value)
        detail = line["detail"] or ""
        if line["comparison_key"]:
            detail = f"comparison {line['comparison_key'][:12]} {detail}".strip()
        attempt = "" if line["attempt"] is None else str(line["attempt"])
        table.add_row(_time(line["at"]), attempt, line["event"], change, escape(line["actor"]), escape(detail))
    _console().print(table, highlight=False)


def resume(session_id: SessionIdArgument, as_json: AsJson = False) -> None:
    """Go on with a session that was cancelled or given up, and show where it is then."""
    with _client() as client:
        show_session(client.resume(session_id), as_json)


def delete(
    session_id: SessionIdArgument,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Delete a session's media and results, for good. Its audit trail stays."""
    if not yes:
        typer.confirm(f"Delete the media and results of session {session_id} for good?", abort=True)
    with _client() as client:
        gone = client.delete(session_id)
    left = "" if gone else " What is left of it in storage or Prefect, the same command removes, or the purge."
    Console().print(f"Session {session_id} is deleted.{left}", highlight=False, soft_wrap=True)


def sweep(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be done.")] = False,
    as_json: AsJson = False,
) -> None:
    """Find sessions and flow runs that should be at work and are not, and mend them, once and now."""
    from prefect.settings import temporary_settings

    from deployments.prefect_access import client_settings
    from deployments.stack import running
    from tasks.settings import Settings
    from tasks.sweep import sweep_once

    settings = Settings()
    with temporary_settings(client_settings(settings, running(settings))):
        findings = asyncio.run(sweep_once(dry_run=dry_run))
    if as_json:
        _print_json([_as_plain(finding) for finding in findings])
    elif findings:
        table = Table("Subject", "To do" if dry_run else "Done", "Why", box=None, pad_edge=False)
        for finding in findings:
            table.add_row(escape(finding.subject), finding.action.value, escape(finding.why))
        _console().print(table, highlight=False)
    else:
        Console().print("Nothing to mend.")


def api_url(settings: "Settings") -> str:
    """Where the upload API is: as set, else that of the system that runs here, else where `kycflow serve` would be.

    Raises:
        ConfigurationError: the system of another state folder answers there.
    """
    import httpx

    from deployments.listening import STACK_HEADER
    from deployments.stack import running
    from tasks.errors import ConfigurationError

    if settings.api_url is not None:
        return str(settings.api_url)
    if (found := running(settings)) is not None:
        return found.upload_api
    url = f"http://{settings.host}:{settings.api_port}"
    with suppress(httpx.HTTPError):
        if STACK_HEADER in httpx.get(f"{url}/health", timeout=5).headers:
            raise ConfigurationError(
                f"No system runs from {settings.state_dir}; the one at {url} runs from another folder. Set "
                "KYCFLOW_STATE_DIR to that folder, or KYCFLOW_API_URL to the API that you mean."
            )
    return url


def show_session(session: dict[str, Any], as_json: bool) -> None:
    """Print a session as the upload API shows it."""
    if as_json:
        _print_json(session)
        return
    table = Table.grid(padding=(0, 2))
    table.add_row("session", f"{session['session_id']}, attempt {session['attempt']}")
    table.add_row("status", session["status"].replace("_", " "))
    for kind, file in session["files"].items():
        table.add_row(kind.replace("_", " "), "missing" if file is None else f"{file['size_bytes']} bytes")
    if session["decision"] is None:
        table.add_row("deadline", f"{_time(session['deadline_at'])} UTC")
    else:
        table.add_row("decision", f"[bold]{session['decision']}[/]")
        table.add_row("reason", session["reason"])
    if session["similarity"] is not None:
        bounds = session["thresholds"]
        table.add_row(
            "similarity",
            f"{session['similarity']:.3f}  (match from {bounds['match']}, review from {bounds['review']})",
        )
    console = Console()
    console.print(table, highlight=False)
    if session["status"] in _NEXT:
        console.print(_NEXT[session["status"]].format(session["session_id"]), highlight=False, soft_wrap=True)


def _as_plain(finding: "Finding") -> dict[str, object]:
    attempt, run = finding.attempt, finding.run
    return {
        "subject": finding.subject,
        "action": finding.action.value,
        "why": finding.why,
        "session_id": attempt.session_id if attempt else None,
        "attempt": attempt.attempt if attempt else None,
        "flow_run_id": str(run.id) if run else None,
    }


def _client() -> "UploadClient":
    from deployments.client import UploadClient
    from tasks.settings import Settings

    settings = Settings()
    return UploadClient(api_url(settings), settings)


def _time(moment: str) -> str:
    """`2026-01-31 12:00:00`, of a moment in JSON."""
    return moment[:19].replace("T", " ")


def _console() -> Console:
    """A file or a pipe has no width of its own: there, nothing needs to be folded."""
    return Console() if sys.stdout.isatty() else Console(width=200)


def _print_json(value: Any) -> None:
    typer.echo(json.dumps(value, indent=2))
