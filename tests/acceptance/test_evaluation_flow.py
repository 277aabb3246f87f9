"""The evaluation's flow, run in this process against a real Prefect server, with the real engine."""

import gc
import json
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from prefect.client.schemas.filters import (
    ArtifactFilter,
    ArtifactFilterFlowRunId,
    LogFilter,
    LogFilterFlowRunId,
)
from prefect.client.schemas.objects import Log
from prefect.settings import PREFECT_LOCAL_STORAGE_PATH, temporary_settings

from flows.evaluate_faces import evaluate_faces
from tasks.evaluation.results import Evaluation
from tasks.evaluation.run import REPORT_FILES
from tasks.settings import Settings
from tasks.storage import open_storage
from tests.evaluation_media import MAN, NOBODY, WOMAN, write_pairs
from tests.system import System, eventually

# Prefect's engine leaves sockets to the process' end, which here comes much later: they are collected in their test.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

PEOPLE = {name.split(".")[0] for name in (*MAN, *WOMAN, NOBODY)}


@pytest.fixture
def listed(
    system: System, media_settings: Settings, weights: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Path, Path]]:
    """A list of pairs, and this process as a GPU worker with a storage and results of its own."""
    del weights  # are in place
    monkeypatch.setenv("KYCFLOW_STATE_DIR", str(media_settings.state_dir))
    monkeypatch.setenv("KYCFLOW_STORAGE_URL", f"file://{tmp_path}/storage")
    with temporary_settings(system.prefect_settings | {PREFECT_LOCAL_STORAGE_PATH: tmp_path / "results"}):
        yield write_pairs(tmp_path / "faces", media_settings)
        gc.collect()


def seen_on_the_server(system: System, run_id: uuid.UUID) -> tuple[dict[str, str], str]:
    """A flow run's Markdown artifacts by key, and all that the server holds of it: run, artifacts, logs."""
    of_run = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[run_id]))
    artifacts = system.prefect(lambda client: client.read_artifacts(artifact_filter=of_run))
    of_log = LogFilter(flow_run_id=LogFilterFlowRunId(any_=[run_id]))

    def ended() -> list[Log] | None:
        """Logs arrive in batches: all are there once the run's last line is."""
        found = system.prefect(lambda client: client.read_logs(of_log))
        return (
            found
            if any(line.message.startswith("Finished in state") for line in found if not line.task_run_id)
            else None
        )

    logs = eventually(ended, 60)
    run = system.prefect(lambda client: client.read_flow_run(run_id))
    everything = [*artifacts, *logs, run]
    text = json.dumps([each.model_dump(mode="json") for each in everything])
    return {a.key or "": str(a.data) for a in artifacts if a.type == "markdown"}, text


def test_the_report_goes_into_storage_and_the_figures_into_an_artifact(
    listed: tuple[Path, Path], system: System, tmp_path: Path
) -> None:
    state = evaluate_faces(str(listed[0]), str(listed[1]), fmr=0.1, baseline=True, return_state=True)
    evaluation = state.result()
    assert isinstance(evaluation, Evaluation)
    assert evaluation.kycflow.accuracy.value == 1
    run_id = state.state_details.flow_run_id
    assert run_id is not None

    storage = open_storage(Settings())
    for name in REPORT_FILES:
        storage.download(f"evaluations/{run_id}/{name}", tmp_path / name)
    assert Evaluation.model_validate_json((tmp_path / "report.json").read_bytes()) == evaluation
    assert (tmp_path / "roc.png").read_bytes().startswith(b"\x89PNG")
    assert not (Settings().state_dir / "evaluations" / str(run_id)).exists(), "embeddings stayed on the worker"

    artifacts, everything = seen_on_the_server(system, run_id)
    assert set(artifacts) == {f"evaluation-{run_id}"}
    text = artifacts[f"evaluation-{run_id}"]
    assert "| Equal error rate |" in text
    assert f"evaluations/{run_id}/worst_pairs.png" in text
    assert {name for name in PEOPLE if name in everything} == set()


def test_a_list_that_is_wrong_fails_the_run_without_naming_a_picture(listed: tuple[Path, Path], system: System) -> None:
    (listed[1] / WOMAN[0]).unlink()
    state = evaluate_faces(str(listed[0]), str(listed[1]), return_state=True)
    assert state.is_failed()
    run_id = state.state_details.flow_run_id
    assert run_id is not None
    _, everything = seen_on_the_server(system, run_id)
    assert "that picture is not in the folder" in everything
    assert {name for name in PEOPLE if name in everything} == set()
