"""One comparison of an ID card's face with the face in a selfie video, on a worker that has the engine."""

from typing import Any

from prefect import flow
from prefect.client.schemas.objects import State

from tasks.comparison import compute_comparison, wake_sessions
from tasks.contracts import Comparison, EngineConfig, StoredFile, comparison_key
from tasks.ending import comparison_cancelled
from tasks.errors import RetryableError
from tasks.faces.models import engine_config
from tasks.liveness import alive
from tasks.report import unavailable
from tasks.settings import current_settings


def warm_up() -> None:
    """Load the engine. A resident worker calls this before it takes runs.

    Raises:
        ConfigurationError: weights are missing. ComputeUnavailable: there is no device for them.
    """
    from tasks.faces.engine import load_engine  # session workers have no engine

    settings = current_settings()
    load_engine(engine_config(settings), settings)


@flow(name="compare-faces", on_cancellation=[comparison_cancelled])
def compare_faces(
    reference: StoredFile,
    probe: StoredFile,
    engine: EngineConfig | None = None,
) -> Comparison | State[Any]:
    """Compare two stored files and store the result under the comparison's key, once.

    Repeated, it finds the row and computes nothing: the row counts how often its computation was started.

    Args:
        reference: The stored ID image.
        probe: The stored selfie video.
        engine: The engine's configuration. Empty: as this worker is configured.
    """
    engine = engine or engine_config(current_settings())
    key = comparison_key(reference.sha256, probe.sha256, engine)
    with alive():
        try:
            return compute_comparison(key, reference, probe, engine)
        except RetryableError as error:
            return unavailable(error)
        finally:
            # Those who wait learn of the end, whatever it is. What is lost here, the sweep makes good.
            wake_sessions(key, return_state=True)
