"""Recognition: aligned crops to embeddings, embeddings to similarities."""

from typing import TYPE_CHECKING

from tasks.faces.native import LOCK, device_errors

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def embed(recogniser: str, crops: "list[NDArray[np.uint8]]") -> "NDArray[np.float64]":
    """(n, d) embeddings of unit length for n aligned BGR crops, in their order. Raises ComputeUnavailable."""
    import numpy as np
    from deepface import DeepFace

    with LOCK, device_errors():
        answer = DeepFace.represent(
            crops, model_name=recogniser, detector_backend="skip", align=False, enforce_detection=False
        )
    # DeepFace nests one level less for a single picture.
    rows = [answer[0]["embedding"]] if len(crops) == 1 else [faces[0]["embedding"] for faces in answer]
    return unit(np.asarray(rows, dtype=np.float64))


def unit(vectors: "NDArray[np.float64]") -> "NDArray[np.float64]":
    """The same vectors (last axis) with length 1; a zero vector stays zero."""
    import numpy as np

    length = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return vectors / np.where(length > 0, length, 1.0)
