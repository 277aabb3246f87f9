"""One comparison of an ID card's face with the face in a selfie video, on a worker that has the engine."""

from typing import Annotated

from prefect import flow
from pydantic import Field

from tasks.comparison import compute_comparison, store_comparison
from tasks.contracts import Comparison, EngineConfig, StoredFile, comparison_key
from tasks.faces.models import engine_config
from tasks.settings import Settings


@flow(name="compare-faces")
def compare_faces(
    reference: Annotated[StoredFile, Field(title="ID image", description="The stored ID image.")],
    probe: Annotated[StoredFile, Field(title="Selfie video", description="The stored selfie video.")],
    engine: Annotated[
        EngineConfig | None, Field(title="Engine", description="Empty: as this worker is configured.")
    ] = None,
) -> Comparison:
    """Compare two stored files and store the result under the comparison's key, once.

    Repeated, it finds the row and computes nothing: the row counts how often its computation was started.
    """
    engine = engine or engine_config(Settings())
    key = comparison_key(reference.sha256, probe.sha256, engine)
    computed = compute_comparison(key, reference, probe, engine)
    return store_comparison(key, reference, probe, engine, computed)
