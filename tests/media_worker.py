"""The engine in a process of its own, so that a native crash or a hang is an answer and not the end of the tests."""

import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path

from tasks.contracts import FileKind, Verdict
from tasks.errors import MediaRefused
from tasks.faces.engine import load_engine
from tasks.faces.models import engine_config, measured
from tasks.faces.picture import report
from tasks.judgement import bounds_for, judge, thresholds_for
from tasks.media import check_id_image, check_selfie_video
from tasks.settings import Settings

_START_SECONDS = 120.0


@dataclass(frozen=True)
class Answer:
    """What became of a file. `trouble`: what went wrong with us, None when nothing did.

    `refused`: the code of the upload service's refusal. `seconds`: of the comparison and its picture.
    """

    trouble: str | None = None
    refused: str | None = None
    verdict: Verdict | None = None
    seconds: float = 0.0


class Worker:
    """Answers for one file after another, in a process that is started anew after a crash or a hang.

    `id_image`, `selfie_video`: sound files, to which the other is compared.
    """

    def __init__(self, id_image: Path, selfie_video: Path, settings: Settings) -> None:
        self._arguments = (id_image, selfie_video, settings)
        self._start()

    @property
    def pid(self) -> int:
        """Of the process that answers."""
        assert self._process.pid is not None
        return self._process.pid

    def ask(self, kind: FileKind, content: bytes, most_seconds: float) -> Answer:
        """What becomes of a file with that content."""
        with suppress(BrokenPipeError):  # of a process that died since; told below
            self._connection.send((kind, content))
        answer = self._receive(most_seconds)
        if answer is None:
            self._process.kill()
            self._process.join()
            answer = Answer(f"No answer within {most_seconds:g} s.")
        if not self._process.is_alive():
            self._start()
        return answer

    def close(self) -> None:
        """End the process."""
        self._connection.close()
        self._process.join(10)
        self._process.kill()

    def _start(self) -> None:
        context = get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_work, args=(theirs, *self._arguments), daemon=True)
        self._process.start()
        theirs.close()
        ready = self._receive(_START_SECONDS)
        assert ready is not None, "the worker does not start"
        assert ready.trouble is None, ready.trouble

    def _receive(self, seconds: float) -> Answer | None:
        if not self._connection.poll(seconds):
            return None
        try:
            answer = self._connection.recv()
        except (EOFError, ConnectionResetError):
            self._process.join()
            return Answer(f"The process died with exit code {self._process.exitcode}.")
        assert isinstance(answer, Answer)
        return answer


def _work(connection: Connection, id_image: Path, selfie_video: Path, settings: Settings) -> None:
    engine = load_engine(engine_config(settings), settings)
    thresholds, bounds = thresholds_for(settings), bounds_for(settings)
    known = measured(settings.recogniser, settings.detector)
    engine.compare(id_image, selfie_video, settings)  # the first loads what the others need
    connection.send(Answer())
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("error")
        path = Path(folder) / "file"

        def answer(kind: FileKind, content: bytes) -> Answer:
            path.write_bytes(content)
            card = kind is FileKind.ID_IMAGE
            refused = _refusal(check_id_image if card else check_selfie_video, path, settings)
            begin = time.perf_counter()
            compared = engine.compare(path if card else id_image, selfie_video if card else path, settings)
            verdict = judge(compared.comparison, thresholds, bounds)
            report(compared, thresholds, known, verdict=verdict)
            return Answer(None, refused, verdict, time.perf_counter() - begin)

        while True:
            try:
                job = connection.recv()
            except EOFError:
                return
            try:
                connection.send(answer(*job))
            except Exception:
                connection.send(Answer(traceback.format_exc()))


def _refusal(check: Callable[[Path, Settings], None], path: Path, settings: Settings) -> str | None:
    try:
        check(path, settings)
    except MediaRefused as exc:
        return exc.code
    return None
