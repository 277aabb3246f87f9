"""What a session's flow run tells in its log, one line each: what was found, and what its comparison was. No scores."""

import logging

from prefect.runtime import flow_run

from tasks.contracts import Comparison, FileKind, FilePair

WORDS = {FileKind.ID_IMAGE: "ID image", FileKind.SELFIE_VIDEO: "selfie video"}

log = logging.getLogger(__name__)
log.setLevel(logging.INFO)  # Prefect adds its handler to the loggers that it is told of, and leaves their level alone


def tell_found(files: FilePair) -> None:
    """One look at storage."""
    found = [
        f"{words} missing" if (file := files.of(kind)) is None else f"{words} found, {file.size_bytes:,} bytes"
        for kind, words in WORDS.items()
    ]
    log.info("%s", "; ".join(found), extra={"action": "files.found"})


def tell_compared(comparison: Comparison) -> None:
    """Whether this run compared the files, or found that done."""
    result, done = comparison.result, comparison.finished_at
    if comparison.started_by == f"flow run {flow_run.id}":
        used = f"{len(result.frames)} of {result.frames_looked_at} frames used"
        action, told = "files.compared", f"compared in {result.seconds.get('total', 0):.2f} s, {used}"
    else:
        action, told = "files.reused", f"reused the comparison of {done.day} {done:%B %Y, %H:%M} UTC"
    log.info("%s", told, extra={"action": action})
