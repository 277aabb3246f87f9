"""Code that is importable where a worker runs, and that nobody has deployed: what an attacker names."""

from pathlib import Path

from prefect import flow


@flow
def leave_a_mark(path: str) -> None:
    """Show that it was run."""
    Path(path).touch()
