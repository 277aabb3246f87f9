"""The files of an evaluation's report, written for their owner only."""

import csv
import io
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tasks.evaluation.gallery import Gallery
from tasks.evaluation.pairs import Pair
from tasks.evaluation.rates import Floats


def scores_csv(pairs: Sequence[Pair], galleries: Sequence[Gallery], scores: Sequence[Floats]) -> bytes:
    """Each pair in the order of the list, with its score by each pipeline; empty where a picture failed."""
    header = ["reference", "probe", "same_person", *(f"score {gallery.pipeline.name}" for gallery in galleries)]
    columns = zip(*scores, strict=True)
    return _csv(
        header,
        (
            [
                pair.reference,
                pair.probe,
                int(pair.genuine),
                *("" if np.isnan(score) else f"{score:.6f}" for score in row),
            ]
            for pair, row in zip(pairs, columns, strict=True)
        ),
    )


def failures_csv(galleries: Sequence[Gallery]) -> bytes:
    """Each failure to acquire: the picture, the pipeline, the reason."""
    return _csv(
        ["picture", "pipeline", "reason"],
        (
            [name, gallery.pipeline.name, template.failure]
            for gallery in galleries
            for name, template in gallery.templates.items()
            if template.failure is not None
        ),
    )


def write(folder: Path, contents: dict[str, bytes]) -> None:
    """Write files that only their owner can read."""
    for name, content in contents.items():
        with os.fdopen(os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            file.write(content)


def _csv(header: list[str], rows: Iterable[list[Any]]) -> bytes:
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer)
    writer.writerow(header)
    writer.writerows(rows)
    return buffer.getvalue().encode()
