"""One comparison of an ID card's face with the face in a selfie video, on a worker that has the engine."""

from prefect import flow

from tasks.comparison import compute_comparison, store_comparison
from tasks.contracts import Comparison, EngineConfig, StoredFile, comparison_key
from tasks.faces.models import engine_config
from tasks.settings import Settings


@flow(name="compare-faces")
def compare_faces(
    reference: StoredFile,
    probe: StoredFile,
    engine: EngineConfig | None = None,
) -> Comparison:
    """Compare two stored files and store the result under the comparison's key, once.

    Repeated, it finds the row and computes nothing: the row counts how often its computation was started.

    Args:
        reference: The stored ID image.
        probe: The stored selfie video.
        engine: The engine's configuration. Empty: as this worker is configured.
    """
    engine = engine or engine_config(Settings())
    key = comparison_key(reference.sha256, probe.sha256, engine)
    computed = compute_comparison(key, reference, probe, engine)
    return store_comparison(key, reference, probe, engine, computed)
