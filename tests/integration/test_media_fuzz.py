"""Real files damaged at random: an answer each time, never a traceback, a crash of native code or a hang.

`KYCFLOW_TEST_FUZZ_EXAMPLES=5000` looks further than each run of the tests does, at other files each time.
"""

import hashlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import Phase, given, settings

from tasks.contracts import FileKind, Reason
from tasks.settings import Settings
from tests.corpus_cards import encoded
from tests.media_corpus import Footage, resized, write_clip
from tests.media_mutations import Mutation, mutations
from tests.media_worker import Answer, Worker

MOST_SECONDS = 20.0
"""For one file."""

EXAMPLES = int(os.environ.get("KYCFLOW_TEST_FUZZ_EXAMPLES", "0"))
"""Of each kind of file; 0: the same few in each run."""

KINDS = {
    "JPEG": FileKind.ID_IMAGE,
    "PNG": FileKind.ID_IMAGE,
    "WEBP": FileKind.ID_IMAGE,
    "MP4": FileKind.SELFIE_VIDEO,
    "WebM": FileKind.SELFIE_VIDEO,
}


class Files:
    """Contents by name. Hypothesis shows what a failing test was given, fixtures too, and refuses where it is long."""

    def __init__(self, content: dict[str, bytes]) -> None:
        self.content = content

    def __repr__(self) -> str:
        return f"Files({', '.join(self.content)})"


@pytest.fixture(scope="module")
def footage(tmp_path_factory: pytest.TempPathFactory, media_settings: Settings) -> Footage:
    return Footage(media_settings, tmp_path_factory.mktemp("footage"))


@pytest.fixture(scope="module")
def files(footage: Footage) -> Files:
    """Sound files, small, so that damage meets their structure often."""
    card = footage.card.crop((140, 180, 620, 720)).resize((160, 180))
    clip = [resized(picture, 176, 132) for picture in footage.clip[::4]]
    return Files(
        {
            "JPEG": encoded(card, "JPEG", quality=80),
            "PNG": encoded(card, "PNG", compress_level=0),
            "WEBP": encoded(card, "WEBP", method=0),
            "MP4": write_clip(footage.folder / "small.mp4", clip).read_bytes(),
            "WebM": write_clip(footage.folder / "small.webm", clip, codec="libvpx").read_bytes(),
        }
    )


@pytest.fixture(scope="module")
def worker(footage: Footage, weights: list[Path]) -> Iterator[Worker]:
    assert weights
    found = Worker(footage.genuine_card, footage.selfie_video, footage.settings)
    yield found
    found.close()


@pytest.mark.parametrize("name", KINDS)
def test_sound_files_match(name: str, files: Files, worker: Worker) -> None:
    """What the others are damaged from."""
    answer = worker.ask(KINDS[name], files.content[name], MOST_SECONDS)
    assert answer.trouble is None
    assert answer.refused is None
    assert answer.verdict is not None
    assert answer.verdict.reason is Reason.SIMILARITY_SUFFICIENT


def test_a_crash_and_a_hang_are_told(files: Files, worker: Worker) -> None:
    """Else the tests below could not fail."""
    for end, most_seconds, trouble in ((signal.SIGSEGV, MOST_SECONDS, "exit code -11"), (signal.SIGSTOP, 0.5, "0.5 s")):
        os.kill(worker.pid, end)
        answer = worker.ask(KINDS["JPEG"], files.content["JPEG"], most_seconds)
        assert trouble in (answer.trouble or "")
    assert worker.ask(KINDS["JPEG"], files.content["JPEG"], MOST_SECONDS).trouble is None


# Nothing is shrunk: a crash or a hang costs a new process each time, and the file that did it is kept.
@settings(
    max_examples=EXAMPLES or 30,
    derandomize=EXAMPLES == 0,
    database=None,
    deadline=None,
    phases=[Phase.explicit, Phase.generate],
)
@given(mutation=mutations())
@pytest.mark.parametrize("name", KINDS)
def test_damaged_files_get_an_answer(
    name: str, files: Files, worker: Worker, footage: Footage, mutation: Mutation
) -> None:
    content = mutation.of(name, files.content)
    answer = worker.ask(KINDS[name], content, MOST_SECONDS)
    if (trouble := trouble_with(KINDS[name], answer)) is not None:
        path = footage.folder / hashlib.sha256(content).hexdigest()
        path.write_bytes(content)
        pytest.fail(f"{trouble} The file is {path}.")


def trouble_with(kind: FileKind, answer: Answer) -> str | None:
    """What is wrong with an answer, None when nothing is: the upload service and the engine may not disagree."""
    if answer.trouble is not None or answer.verdict is None:
        return answer.trouble or "No verdict."
    if answer.seconds >= MOST_SECONDS or len(answer.verdict.detail or "") > 160:
        return f"Too long: {answer}."
    unreadable = answer.verdict.reason in {Reason.ID_IMAGE_UNREADABLE, Reason.VIDEO_UNREADABLE}
    if kind is FileKind.ID_IMAGE:
        agreed = unreadable == (answer.refused is not None)
    else:  # the engine uses what is there of a video, and of its frames those that decode
        agreed = unreadable or answer.refused in {None, "TRUNCATED", "VIDEO_UNREADABLE", "VIDEO_TOO_MANY_PIXELS"}
    return None if agreed else f"They disagree: {answer}."
