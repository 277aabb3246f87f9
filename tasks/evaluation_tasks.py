"""Tasks: run an evaluation on this worker, keep its report in storage, show its figures in the Prefect UI."""

import shutil
import time
from pathlib import Path
from typing import Any

from prefect import task
from prefect.artifacts import create_markdown_artifact, create_progress_artifact, update_progress_artifact
from prefect.cache_policies import NO_CACHE

from tasks.contracts import Plain
from tasks.dispatch import prefect_errors
from tasks.evaluation.report import markdown
from tasks.evaluation.results import Evaluation
from tasks.evaluation.run import REPORT_FILES, evaluate_files
from tasks.retries import retried
from tasks.settings import current_settings
from tasks.storage import open_storage
from tasks.storage.keys import evaluation_key

PROGRESS_SECONDS = 5.0
"""Between two updates of the progress bar: each is a call of Prefect's API."""


class StoredEvaluation(Plain):
    """An evaluation's figures, and the storage keys of its report's files."""

    evaluation: Evaluation
    storage_keys: tuple[str, ...]


@task(name="evaluate pairs", cache_policy=NO_CACHE, **retried(3))
def evaluate_pairs(run_id: str, pairs_csv: str, images: str, fmr: float, baseline: bool) -> StoredEvaluation:
    """Score all pairs and put the report's files into storage.

    Templates lie in a folder of this run on this worker: tried again, it goes on where it was; done, they are deleted.

    Raises:
        ConfigurationError: the list, the folder or the installation is not what is needed; the message names lines,
            never pictures. StorageUnavailable, ComputeUnavailable, OrchestratorUnavailable: tried again first.
    """
    settings = current_settings()
    out = settings.state_dir.absolute() / "evaluations" / run_id
    evaluation = evaluate_files(
        Path(pairs_csv), Path(images), out, settings, fmr=fmr, baseline=baseline, progress=_ProgressBar(run_id)
    )
    storage = open_storage(settings)
    keys = tuple(evaluation_key(run_id, name) for name in REPORT_FILES)
    for key, name in zip(keys, REPORT_FILES, strict=True):
        storage.put(key, out / name)
    shutil.rmtree(out)
    return StoredEvaluation(evaluation=evaluation, storage_keys=keys)


@task(name="publish evaluation", cache_policy=NO_CACHE, **retried(3))
def publish_evaluation(run_id: str, stored: StoredEvaluation) -> None:
    """Write the run's artifact: aggregates and storage keys, never a picture or the name of one."""
    suggested = stored.evaluation.suggested
    with prefect_errors():
        create_markdown_artifact(
            key=f"evaluation-{run_id}",
            markdown=artifact_text(stored),
            description=f"Accuracy {stored.evaluation.kycflow.accuracy.value:.2%}; threshold {suggested.threshold:.4f} "
            f"for a false match rate of at most {stored.evaluation.wanted_fmr:g}",
        )


def artifact_text(stored: StoredEvaluation) -> str:
    """The artifact's text, Markdown."""
    files = "\n".join(f"- `{key}`" for key in stored.storage_keys)
    return f"{markdown(stored.evaluation)}\n## Files in storage\n\n{files}\n"


class _ProgressBar:
    """Prefect's progress artifact: one for each pipeline."""

    def __init__(self, run_id: str) -> None:
        self._run_id = run_id
        self._name: str | None = None
        self._written = 0.0

    def __call__(self, name: str, done: int, of: int) -> None:
        share, now = 100 * done / of, time.monotonic()
        if name == self._name and done < of and now - self._written < PROGRESS_SECONDS:
            return
        with prefect_errors():
            if name != self._name:
                key = f"evaluation-{self._run_id}-{name.lower().replace('.', '-')}"
                self._artifact: Any = create_progress_artifact(share, key, f"{name}: pictures embedded")
            else:
                update_progress_artifact(self._artifact, share)
        self._name, self._written = name, now
