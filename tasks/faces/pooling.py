"""Pooling: embeddings of several frames to one, and how far they agree. Pure arithmetic."""

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def unit(vectors: "NDArray[np.float64]") -> "NDArray[np.float64]":
    """The same vectors (last axis) with length 1; a zero vector stays zero."""
    import numpy as np

    length = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return vectors / np.where(length > 0, length, 1.0)


def pooled(embeddings: "NDArray[np.float64]", weights: Sequence[float]) -> "NDArray[np.float64]":
    """The weighted mean of (n, d) embeddings of unit length, of unit length again: (d,)."""
    import numpy as np

    return unit(np.average(embeddings, axis=0, weights=weights))


def spread(embeddings: "NDArray[np.float64]") -> float | None:
    """The smallest cosine between two of (n, d) embeddings of unit length; None for one alone."""
    import numpy as np

    if len(embeddings) < 2:
        return None
    return float(np.min(embeddings @ embeddings.T))


def best_of_parts(times: Sequence[float], weights: Sequence[float], parts: int) -> list[int]:
    """Indices of the frames to use, in the order of time: the one that weighs most in each of `parts` runs of frames.

    Runs rather than the best of all, so that no part of a video goes unseen: a second person would hide there.
    """
    count = len(times)
    order = sorted(range(count), key=lambda index: times[index])
    parts = min(parts, count)
    bounds = [count * part // parts for part in range(parts + 1)]
    return [max(order[begin:end], key=lambda index: (weights[index], -times[index])) for begin, end in pairwise(bounds)]
