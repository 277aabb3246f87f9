"""How well the engine tells people apart, measured on a worker that has the engine and the pictures."""

from typing import Annotated

from prefect import flow
from prefect.runtime import flow_run
from pydantic import Field

from tasks.caching import WITHOUT_RESULT
from tasks.evaluation.results import Evaluation
from tasks.evaluation_tasks import evaluate_pairs, publish_evaluation
from tasks.liveness import alive


@flow(name="evaluate-faces", **WITHOUT_RESULT)
def evaluate_faces(
    pairs_csv: str,
    images: str,
    fmr: Annotated[float, Field(gt=0, lt=1)] = 1e-3,
    baseline: bool = False,
) -> Evaluation:
    """Score labelled pairs of pictures, and publish error rates, charts and a suggested threshold.

    The report's files go into storage under `evaluations/`, the figures into an artifact. Neither the artifact nor
    the result holds the name of a picture.

    Args:
        pairs_csv: CSV file on the worker with the columns reference, probe (file names in the folder of pictures) and
            same_person (1 or 0).
        images: Folder on the worker that holds the pictures.
        fmr: The false match rate to suggest a threshold for: 0.001 is one in a thousand.
        baseline: Whether to run DeepFace.verify's own pipeline on the same pairs, too.
    """
    run_id = str(flow_run.id)
    with alive():
        stored = evaluate_pairs(run_id, pairs_csv, images, fmr, baseline)
        publish_evaluation(run_id, stored)
        return stored.evaluation
